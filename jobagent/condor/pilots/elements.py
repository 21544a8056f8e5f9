"""Compute elements as a VO knows them: a TOML file of entries, and the batch job that a pilot is to each kind.

[[element]]
name = "site-a"
resource = "condor ce.site-a.example ce.site-a.example:9619"
site = "site-a"
cpus = 8
memory_mb = 16000
wall_s = 172800
max_pilots = 100
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobagent.config import decode, setting
from jobagent.errors import ConfigurationError, UsageError

IS_PILOT = "JobAgentPilot"  # in the pilots' own job ads, at the submitting schedd
ELEMENT = "JobAgentPilotElement"
KINDS = ("condor", "arc")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RESOURCE = re.compile(r"(?P<kind>[a-z]+)\s+(?P<address>\S+)(?:\s+(?P<pool>\S+))?")


@dataclass(frozen=True, slots=True)
class Element:
    """`[[element]]`: one way to get slots; an entry for each."""

    name: str = setting("", "Name of the entry.")
    resource: str = setting("", "As in HTCondor's grid_resource: `condor SCHEDD COLLECTOR` or `arc URL`.")
    site: str = setting("", "Name of the site; empty: the entry's.")
    cpus: int = setting(1, "Cores of one pilot.")
    memory_mb: int = setting(2000, "Memory of one pilot.")
    wall_s: int = setting(86400, "Seconds that one pilot gets.")
    queue: str = setting("", "Batch queue at the site, where it has several.")
    max_pilots: int = setting(10, "Pilots in all, waiting and running.")
    max_waiting: int = setting(5, "Pilots that wait in the site's queue.")
    max_per_cycle: int = setting(5, "Pilots that are submitted at a time.")
    backoff_s: float = setting(300.0, "Pause after a pilot that failed; doubles with each further one.")
    is_enabled: bool = setting(True, "Whether the factory submits here.")

    @property
    def kind(self) -> str:
        """Of the resource: `condor` or `arc`."""
        return self.resource.split()[0] if self.resource else ""


def load(path: Path) -> tuple[Element, ...]:
    """Read a file of entries.

    Raises:
        ConfigurationError: It cannot be read, or an entry is wrong.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    entries = raw.pop("element", [])
    if raw or not isinstance(entries, list):
        raise ConfigurationError(f"{path}: only [[element]] entries are known, found {', '.join(raw) or 'element'}")
    elements = [decode(Element, entry, where=f"{path}: element {number}") for number, entry in enumerate(entries, 1)]
    for element in elements:
        check(element, where=str(path))
    names = [element.name for element in elements]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{path}: two elements have one name")
    return tuple(elements)


def check(element: Element, *, where: str) -> None:
    """Raise ConfigurationError where an entry cannot work."""
    if not _NAME.fullmatch(element.name):
        raise ConfigurationError(f"{where}: element name {element.name!r} is not of letters, digits, _ . and -")
    match = _RESOURCE.fullmatch(element.resource.strip())
    if match is None or match["kind"] not in KINDS or (match["kind"] == "condor" and not match["pool"]):
        raise ConfigurationError(
            f"{where}: {element.name}: resource is {element.resource!r}",
            remedy="write condor SCHEDD COLLECTOR:PORT, or arc https://HOST",
        )
    for name in ("cpus", "memory_mb", "wall_s"):
        if getattr(element, name) <= 0:
            raise ConfigurationError(f"{where}: {element.name}: {name} must be greater than 0")


def find(elements: Sequence[Element], name: str) -> Element:
    """Return the entry of that name, or one made of a resource that is written out.

    Raises:
        UsageError: There is none.
    """
    for element in elements:
        if element.name == name:
            return element
    if " " in name.strip():
        element = Element(name="command-line", resource=name.strip())
        check(element, where="--ce")
        return element
    known = ", ".join(element.name for element in elements) or "none"
    raise UsageError(
        f"no compute element {name!r}", remedy=f"known: {known}; or write 'condor SCHEDD COLLECTOR:PORT'"
    )


@dataclass(frozen=True, slots=True)
class Order:
    """One submission of pilots: `script` and `token` are files here, `logs` a directory."""

    element: Element
    script: Path
    token: Path
    logs: Path


def description(order: Order) -> dict[str, str]:
    """Return the submit description of the pilots, in HTCondor's submit language."""
    element = order.element
    environment = {
        "JOBAGENT_TOKEN_FILE": order.token.name,
        "JOBAGENT_WALL_S": str(element.wall_s),
        "JOBAGENT_SITE": element.site or element.name,
        "JOBAGENT_BATCH_JOB": f"{element.name}/$(Cluster).$(Process)",
    }
    common = {
        "universe": "grid",
        "grid_resource": element.resource.strip(),
        "executable": str(order.script),
        "transfer_executable": "true",
        "transfer_input_files": str(order.token),
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT",
        "environment": '"' + " ".join(f"{k}={_quoted(v)}" for k, v in environment.items()) + '"',
        "output": str(order.logs / f"{element.name}.$(Cluster).$(Process).out"),
        "error": str(order.logs / f"{element.name}.$(Cluster).$(Process).err"),
        "log": str(order.logs / f"{element.name}.log"),
        "request_cpus": str(element.cpus),
        "request_memory": str(element.memory_mb),
        f"MY.{IS_PILOT}": "true",
        f"MY.{ELEMENT}": f'"{element.name}"',
        "periodic_remove": "JobStatus == 5 && time() - EnteredCurrentStatus > 3600",
    }
    return common | _OF_KIND[element.kind](element)


def _of_condor(element: Element) -> dict[str, str]:
    """Attributes that HTCondor-CE's routes look at; wall time is in minutes there."""
    minutes = max(1, element.wall_s // 60)
    wanted = {"xcount": element.cpus, "maxMemory": element.memory_mb, "maxWallTime": minutes}
    extra = {f"MY.{name}": str(value) for name, value in wanted.items()}
    return extra | ({"MY.remote_queue": f'"{element.queue}"', "batch_queue": element.queue} if element.queue else {})


def _of_arc(element: Element) -> dict[str, str]:
    """ARC's own resource description."""
    slots = f"<SlotRequirement><NumberOfSlots>{element.cpus}</NumberOfSlots></SlotRequirement>"
    memory = f"<IndividualPhysicalMemory>{element.memory_mb * (1 << 20) // element.cpus}</IndividualPhysicalMemory>"
    wall = f"<WallTime>{element.wall_s}</WallTime>"
    queue = f"<QueueName>{element.queue}</QueueName>" if element.queue else ""
    return {"arc_resources": slots + memory + wall + queue}


_OF_KIND = {"condor": _of_condor, "arc": _of_arc}


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''").replace('"', '""') + "'"
