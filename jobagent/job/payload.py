"""Runs the payload through the keeper: limits, signals, validation."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from jobagent.errors import LimitExceeded, ValidationFailed
from jobagent.job.keeper import Command, Keeper
from jobagent.model import Outcome

VALIDATION_LIMIT_S = 300  # AliEn's limit for the Validationcommand
TICK_S = 10.0
_POLL_S = 0.2  # how late a signal to the agent reaches the payload


@dataclass(slots=True)
class Interruption:
    """Set by a signal handler, read by the payload's loop."""

    number: int = 0
    count: int = 0
    _callbacks: list[Callable[[], None]] = field(default_factory=list)

    def on_signal(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the handler, which must only set flags."""
        self._callbacks.append(callback)

    def __call__(self, number: int, frame: object = None) -> None:
        self.number = self.number or number
        self.count += 1
        for callback in self._callbacks:
            callback()


def run_payload(
    keeper: Keeper,
    command: Command,
    *,
    wall_limit_s: float,
    grace_s: float,
    interruption: Interruption,
    tick: Callable[[float], None] = lambda elapsed_s: None,
) -> Outcome:
    """Run `command` to its end and return the outcome, its whole process tree gone.

    A limit or a signal to the agent sends SIGTERM, then after `grace_s` SIGKILL; a second signal sends SIGKILL at
    once.  `Outcome.reason` says when it was the agent that ended it.
    """
    keeper.start(command)
    start = time.monotonic()
    reason, kill_at, next_tick = "", 0.0, start + TICK_S
    while True:
        outcome = keeper.wait(_POLL_S)
        now = time.monotonic()
        if outcome is not None:
            return replace(outcome, reason=reason)
        if not reason:
            if interruption.count:
                reason = f"signal {interruption.number}"
            elif now - start > wall_limit_s:
                reason = f"wall limit of {wall_limit_s:g} s"
            if reason:
                keeper.signal(signal.SIGTERM)
                kill_at = now + grace_s
        elif now > kill_at or interruption.count > 1:
            keeper.signal(signal.SIGKILL)
            kill_at = now + grace_s
        if now > next_tick:
            next_tick = now + TICK_S
            tick(now - start)


def check_limit(outcome: Outcome) -> None:
    """Raise LimitExceeded where the job's own wall limit ended the payload."""
    if outcome.reason.startswith("wall limit"):
        raise LimitExceeded(f"the payload was ended at its {outcome.reason}", remedy="raise TTL")


def validate(keeper: Keeper, command: Command, *, grace_s: float, interruption: Interruption) -> Outcome:
    """Run the Validationcommand.

    Raises:
        ValidationFailed: With AliEn's state: ERROR_V failed, ERROR_VT timed out.
    """
    outcome = run_payload(
        keeper, command, wall_limit_s=VALIDATION_LIMIT_S, grace_s=grace_s, interruption=interruption
    )
    if outcome.reason.startswith("wall limit"):
        raise ValidationFailed(f"ERROR_VT: {command.argv[0]} took more than {VALIDATION_LIMIT_S} s")
    if not outcome.is_success and not outcome.reason:
        raise ValidationFailed(f"ERROR_V: {command.argv[0]} ended with {outcome.shell_code}")
    return outcome
