"""What the machine ad says of the agent: run by the startd every few seconds, prints attributes.

A node service that does not answer makes the machine not ready; jobs with packages then match other machines.
"""

from __future__ import annotations

from jobagent.condor.language import attributes, longform
from jobagent.node import client

MAX_LIST_CHARACTERS = (
    50_000  # an ad goes to the collector every few minutes, and the startd drops lines from 64 kB on
)
ASK_TIMEOUT_S = 10.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


def main(socket_path: str) -> int:
    """Print the attributes; the line that starts with `-` ends them."""
    try:
        found = of_status(client.ask(socket_path, "status", timeout_s=ASK_TIMEOUT_S))
    except client.ServiceError as error:
        found = unavailable(str(error))
    for name, value in found.items():
        print(longform.assignment(name, value))
    print("- update:true", flush=True)
    return 0


def of_status(status: Mapping[str, Any]) -> dict[str, longform.Value]:
    """Return the machine's attributes for an answer of the node service."""
    usage = status.get("usage") or {}
    swarm = status.get("swarm") or {}
    found: dict[str, longform.Value] = {
        attributes.MACHINE_VERSION: str(status["version"]),
        attributes.MACHINE_READY: bool(status["ready"]),
        attributes.MACHINE_REASON: readable(str(status["reason"])),
        attributes.MACHINE_FAILURES: int(status["failures"]),
        attributes.MACHINE_CACHED_PACKAGES: fitting([*status.get("leased_packages", ()), *status["packages"]]),
        attributes.MACHINE_LEASES: int(status["leases"]),
        attributes.MACHINE_CACHE_USED_MB: int(usage.get("used_bytes", 0)) >> 20,
        attributes.MACHINE_CACHE_FREE_MB: int(usage.get("free_bytes", 0)) >> 20,
        attributes.MACHINE_PEERS: int(swarm.get("peers", 0)),
        attributes.MACHINE_UPLOAD_RATE: round(swarm.get("upload_bytes_per_s", 0.0)),
        attributes.MACHINE_DOWNLOAD_RATE: round(swarm.get("download_bytes_per_s", 0.0)),
    }
    for name, value in (status.get("attributes") or {}).items():
        found.setdefault(name, readable(value) if isinstance(value, str) else value)
    return found


def fitting(names: Sequence[str]) -> tuple[str, ...]:
    """Return as many names, each once and in order, as one line of an ad may hold: those in use come first."""
    found: dict[str, None] = {}
    left = MAX_LIST_CHARACTERS
    for name in names:
        if name not in found:
            left -= len(name) + 4
            if left < 0:
                break
            found[name] = None
    return tuple(sorted(found))


def unavailable(reason: str) -> dict[str, longform.Value]:
    """Return the attributes of a machine whose node service does not answer."""
    empty: tuple[str, ...] = ()
    return {
        attributes.MACHINE_READY: False,
        attributes.MACHINE_REASON: readable(reason),
        attributes.MACHINE_CACHED_PACKAGES: empty,
    }


def readable(text: str) -> str:
    """Return `text` as one line that an ad can hold."""
    return " ".join(text.replace("\0", "").split())
