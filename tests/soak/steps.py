"""One step fault: run the scenario with the n-th step as the fault, and check what is left."""

from __future__ import annotations

import signal
from pathlib import Path

from jobagent.testing.faults import Steps, arm, in_child
from jobagent_sharedcache.filesystem import remove_tree
from tests.soak.agents import check_quiet, outcome_of

WENT_THROUGH, REFUSED, NO_FAULT_LEFT = 0, 3, 7


def strike(base: Path, kind: str, at: int) -> int | None:
    """Let the `at`-th step fail; return how the process ended, None where there are fewer steps.

    Raises:
        AssertionError: The process ended otherwise than by success, an error of ours, or the kill.
        Violation: The cache that is left is not as it must be.
    """
    root = base / "cache"
    base.mkdir()
    steps = Steps(root, kind, at)

    def act() -> int:
        arm(steps)
        code = outcome_of(root)
        return code if steps.count >= at else NO_FAULT_LEFT

    code = in_child(act)
    if code == NO_FAULT_LEFT:
        remove_tree(base)
        return None
    assert code in (WENT_THROUGH, REFUSED, -signal.SIGKILL), f"{kind} at step {at}: exit {code}"
    check_quiet(root, quarantined=1)
    remove_tree(base)
    return code
