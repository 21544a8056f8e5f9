"""The prepare hook: asks the node service for a job's packages and tells the starter of the result.

Run by the starter as the job's user before the payload: the job ad comes on standard input, changes of it go to
standard output, and so does a failure, as `HookStatusCode` (1…299 holds the job, 300 and above sends it back to Idle)
with `HookStatusMessage`.  The lease is bound to the starter's process, which is this program's parent.

On every job's path: a job without packages passes before anything is imported, and no foreign module ever is.
"""

from __future__ import annotations

import os
import sys

from jobagent.condor.language import attributes, longform

MAX_AD_BYTES = 16 << 20
MAX_MESSAGE_CHARACTERS = 900  # of a HoldReason; the starter adds its own words
CONDORS_OUTPUT_MAX = 10_240  # bytes of a hook's output that the starter reads unless PIPE_BUFFER_MAX says more
MAX_RESTARTS = 5  # of the node service during one prepare: more is no accident
STATUS_OF_BUG = 370  # EX_SOFTWARE, and the job runs elsewhere: a fault of ours must not cost the user his job
# What the node service needs to know of the job; the rest of an ad may be large, and is nobody's business.
SENT_ATTRIBUTES = (
    attributes.PACKAGES,
    attributes.PACKAGES_PREINSTALLED,
    attributes.VIRTUAL_ORGANISATION,
    "ClusterId",
    "ProcId",
    "GlobalJobId",
    "Owner",
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class Refusal(Exception):
    """The job cannot run here; `status` is the HookStatusCode."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def main(socket_path: str, *, silence_s: float = 60.0, patience_s: float = 60.0, limit_s: float = 7200.0) -> int:
    """Prepare the job whose ad is on standard input.

    Args:
        silence_s: Longest time without a sign of life of the node service.
        patience_s: How long to wait for a node service that is being restarted.
        limit_s: Longest time in all; HTCondor itself sets no limit.
    """
    text = sys.stdin.buffer.read(MAX_AD_BYTES + 1)
    ad = longform.read(text)
    if longform.expression(ad, attributes.PACKAGES) is None:
        return 0
    try:
        if len(text) > MAX_AD_BYTES:
            raise Refusal(
                214, f"the job ad has more than {MAX_AD_BYTES >> 20} MB; shorten the job's arguments or lists"
            )
        answer = prepared(ad, socket_path, silence_s, patience_s, limit_s)
        check_size(answer, sys.argv[1:])
        print(answer, flush=True)
    except Refusal as refusal:
        print(refused(refusal.status, str(refusal)), flush=True)
    except Exception as error:  # noqa: BLE001 - the process border
        print(refused(STATUS_OF_BUG, f"prepare hook: {type(error).__name__}: {error}"), flush=True)
    return 0


def prepared(ad: longform.Ad, socket_path: str, silence_s: float, patience_s: float, limit_s: float) -> str:
    """Return the changes of the job ad once the packages are there; raises Refusal."""
    from jobagent.condor.language import environment

    try:
        variables = environment.of_job(ad)
    except ValueError as error:
        raise Refusal(214, f'{error}; write it as environment = "NAME=value …"') from error
    answer = _ask(socket_path, request(ad, variables), silence_s, patience_s, limit_s)
    changed = {name: value for name, value in answer["environment"].items() if longform.is_sayable(value)}
    found = summary(answer)
    is_logged = (longform.expression(ad, "WantRemoteUpdates") or "").lower() == "true"
    _tell_starter(found, sentence(found) if is_logged else "")
    lines = [longform.assignment("Environment", environment.render(changed))]
    return "\n".join(lines + [longform.assignment(name, value) for name, value in found.items()])


def check_size(answer: str, words: Sequence[str]) -> None:
    """Raise Refusal where the starter would read but a part of the answer; the settings tell its limit as `words`."""
    size = len(answer.encode("utf-8", "surrogateescape")) + 1
    told = int(words[0]) if words else 0
    if size >= (told or CONDORS_OUTPUT_MAX):
        text = f"the job's environment with that of its packages has {size} bytes, and the starter reads"
        if told:
            raise Refusal(214, f"{text} {told}; set fewer or shorter variables in environment, or no getenv")
        raise Refusal(324, f"{text} {CONDORS_OUTPUT_MAX}; run jobagent condor configure again, then condor_reconfig")


def request(ad: longform.Ad, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of the node service's `prepare` for this job."""
    known = {name: longform.expression(ad, name) for name in SENT_ATTRIBUTES}
    lines = ['MyType = "Job"', *(f"{name} = {text}" for name, text in known.items() if text is not None)]
    return {
        "job": "\n".join(lines) + "\n",
        "dialect": "classad",
        "job_id": f"{known['ClusterId']}.{known['ProcId']}",
        "holder": int(os.environ.get("CONDOR_STARTER_PID") or os.getppid()),  # 23.9 sets it for the payload only
        "environment": dict(variables),
    }


def summary(answer: Mapping[str, Any]) -> dict[str, longform.Value]:
    """Return what the agent did as attributes of the job; lists too long for one attribute go on in `…2`, `…3`."""
    packages = answer["packages"]
    found: dict[str, longform.Value] = {}
    for name, values in (
        (attributes.JOB_PACKAGES, [package["id"] for package in packages]),
        (attributes.JOB_DIGESTS, [package["digest"] for package in packages]),
    ):
        for number, part in enumerate(parts(values), 1):
            found[name if number == 1 else f"{name}{number}"] = part
    found[attributes.JOB_PREPARE_SECONDS] = round(answer["seconds"], 3)
    found[attributes.JOB_SEEDER_BYTES] = sum(package["seeder_bytes"] for package in packages)
    found[attributes.JOB_NEIGHBOUR_BYTES] = sum(package["neighbour_bytes"] for package in packages)
    found[attributes.JOB_WEB_BYTES] = sum(package["web_bytes"] for package in packages)
    found[attributes.JOB_CACHE_HITS] = sum(package["cache_hit"] for package in packages)
    return found


def parts(values: list[str], limit_characters: int = 900) -> list[tuple[str, ...]]:
    """Cut a list into pieces that the starter takes in one line; at least one, perhaps empty."""
    pieces: list[list[str]] = [[]]
    length = 0
    for value in values:
        if pieces[-1] and length + len(value) + 4 > limit_characters:
            pieces.append([])
            length = 0
        pieces[-1].append(value)
        length += len(value) + 4
    return [tuple(piece) for piece in pieces]


def refused(status: int, message: str) -> str:
    """Return the lines that hold the job (status below 300) or send it back to Idle."""
    from jobagent.errors import one_line

    text = one_line(message, limit=MAX_MESSAGE_CHARACTERS)
    return f"HookStatusCode = {status}\n{longform.assignment('HookStatusMessage', text)}"


def _ask(path: str, arguments: dict[str, Any], silence_s: float, patience_s: float, limit_s: float) -> dict[str, Any]:
    """Ask until the service answers: one that is killed meanwhile is restarted and goes on from what it has."""
    import time

    from jobagent.node import client

    last_sign = time.monotonic()
    deadline = last_sign + limit_s

    def alive(_: object) -> None:
        nonlocal last_sign
        last_sign = time.monotonic()

    for restarts_left in reversed(range(MAX_RESTARTS)):
        last_sign = time.monotonic()
        try:
            return client.ask(
                path, "prepare", arguments, on_event=alive,
                timeout_s=silence_s, wait_for_service_s=patience_s, deadline=deadline,
            )  # fmt: skip
        except client.ServiceError as error:
            if time.monotonic() >= deadline:
                reason = f"packages were not ready within {limit_s:g} s; see the node service's log on this node"
                raise Refusal(325, reason) from error
            is_gone = error.kind != "NodeServiceUnavailable" or time.monotonic() - last_sign >= patience_s
            if is_gone or not restarts_left:
                raise Refusal(error.hook_status, without_place(str(error))) from error
    raise AssertionError("unreachable")


def without_place(message: str) -> str:
    """Return a message without line and column: they are of what `request` wrote, not of the user's file."""
    where, _, rest = message.partition(": ")
    return rest if where.startswith("line ") and ", column " in where else message


def sentence(found: Mapping[str, longform.Value]) -> str:
    """Return the line for the user log."""
    packages = found[attributes.JOB_PACKAGES]
    origins = {
        "the seeder": attributes.JOB_SEEDER_BYTES,
        "neighbours": attributes.JOB_NEIGHBOUR_BYTES,
        "the web": attributes.JOB_WEB_BYTES,
    }
    sizes = ", ".join(f"{found[name]} bytes from {origin}" for origin, name in origins.items())
    names = ", ".join(packages) if isinstance(packages, tuple) else ""
    return f"jobagent: {names} ready after {found[attributes.JOB_PREPARE_SECONDS]} s; {sizes}"


def _tell_starter(found: Mapping[str, longform.Value], line: str) -> None:
    """Put the attributes into the queue and the history; a site that forbids it loses only that."""
    from jobagent.condor.execution_point import chirp

    path = os.environ.get(chirp.CONFIG_VARIABLE)
    try:
        if path:
            with open(path, encoding="ascii") as stream:
                config = stream.read()
            with chirp.Chirp(config) as starter:
                starter.update(found)
                if line:
                    starter.log(line)
    except (OSError, ValueError) as error:
        print(f"job attributes do not reach the queue: {error}", file=sys.stderr)
