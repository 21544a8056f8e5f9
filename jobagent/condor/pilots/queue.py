"""Pilots in the queue of a schedd and glide-ins in its pool: submitting them, and seeing what became of them.

The only module of the pilots that talks to HTCondor; what to submit is decided in `factory`, how in `elements`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobagent.condor.pilots import elements, glidein_config
from jobagent.condor.pilots.elements import Element, Order
from jobagent.condor.pilots.factory import Demand, Ended, Presence
from jobagent.errors import SiteError

IDLE, RUNNING, REMOVED, COMPLETED, HELD = 1, 2, 3, 4, 5  # JobStatus
HISTORY_LIMIT = 200  # ended pilots that are looked at
HISTORY_S = 24 * 3600.0
GRID_UNIVERSE = 9
_DURATIONS = ("AllowedExecuteDuration", "AllowedJobDuration")
LANDING_S = 600.0  # from a pilot's start until its slots are in the pool, at most
_GLIDEIN_ATTRIBUTES = [
    *("Name", "Cpus", "TotalSlotCpus", "SlotType", "State", "JobAgentReady", "JobAgentReason"),
    *(
        glidein_config.SITE,
        glidein_config.BATCH_JOB,
        glidein_config.ENDS,
        glidein_config.REASON,
        glidein_config.PILOT,
    ),
]
_JOB_ATTRIBUTES = [
    "ClusterId",
    "ProcId",
    "JobStatus",
    "EnteredCurrentStatus",
    "GridJobStatus",
    "HoldReason",
    elements.ELEMENT,
]


@dataclass(frozen=True, slots=True)
class Pilot:
    """A pilot in the queue."""

    name: str  # element/cluster.proc, as its glide-in says it too
    element: str
    status: int
    since_s: float
    hold_reason: str = ""


@dataclass(frozen=True, slots=True)
class GlideinSlot:
    """A glide-in in the pool; cores that are free, and why it takes no jobs, if so."""

    name: str
    site: str
    pilot: str
    free_cores: int
    cores: int
    ends_s: int
    reason: str


@dataclass(frozen=True, slots=True)
class Overview:
    """What queue and pool say at one moment."""

    pilots: Sequence[Pilot]
    glideins: Sequence[GlideinSlot]
    ended: Mapping[str, Sequence[Ended]]
    demands: Sequence[Demand]


class PilotQueue:
    """The schedd that pilots are submitted through, and the pool that they join.

    Raises:
        SiteError: They do not answer, or HTCondor's bindings are not configured.
    """

    def __init__(self) -> None:
        with _translated("HTCondor is not configured here"):
            import htcondor2

            self._condor = htcondor2
            self._schedd = htcondor2.Schedd()
            self._collector = htcondor2.Collector()

    def submit(self, order: Order, count: int) -> str:
        """Submit pilots; return the cluster's id."""
        with _translated(f"cannot submit pilots to {order.element.name}"):
            order.logs.mkdir(parents=True, exist_ok=True)
            result = self._schedd.submit(self._condor.Submit(elements.description(order)), count=count)
            return str(result.cluster())

    def remove(self, element: str) -> int:
        """Remove all pilots of an element, those that run too; return how many."""
        with _translated("cannot remove pilots"):
            which = f'{elements.IS_PILOT} =?= true && {elements.ELEMENT} =?= "{element}"'
            done = self._schedd.act(self._condor.JobAction.Remove, which, reason="jobagent pilots remove")
            return int(done.get("TotalSuccess", 0))

    def overview(self, *, now_s: float | None = None) -> Overview:
        """Look at queue, history and pool."""
        now_s = time.time() if now_s is None else now_s
        with _translated("cannot look at the pilots"):
            return Overview(self._pilots(), self._glideins(), self._ended(now_s), self._demands())

    def _pilots(self) -> list[Pilot]:
        ads = self._schedd.query(f"{elements.IS_PILOT} =?= true", _JOB_ATTRIBUTES)
        return [
            Pilot(
                f"{ad.get(elements.ELEMENT, '')}/{ad['ClusterId']}.{ad['ProcId']}",
                str(ad.get(elements.ELEMENT, "")),
                int(ad["JobStatus"]),
                float(ad.get("EnteredCurrentStatus", 0)),
                str(ad.get("HoldReason", "")),
            )
            for ad in ads
        ]

    def _glideins(self) -> list[GlideinSlot]:
        where = f'{glidein_config.IS_GLIDEIN} =?= true && SlotType =!= "Dynamic"'
        ads = self._collector.query(self._condor.AdType.Startd, where, _GLIDEIN_ATTRIBUTES)
        return [
            GlideinSlot(
                str(ad["Name"]),
                str(ad.get(glidein_config.SITE, "")),
                str(ad.get(glidein_config.BATCH_JOB, "")),
                int(ad.get("Cpus", 0)),
                int(ad.get("TotalSlotCpus", 0)),
                int(ad.get(glidein_config.ENDS, 0)),
                str(
                    ad.get(glidein_config.REASON, "")
                    or ("" if ad.get("JobAgentReady") else ad.get("JobAgentReason", ""))
                ),
            )
            for ad in ads
        ]

    def _ended(self, now_s: float) -> dict[str, list[Ended]]:
        since = f"{elements.IS_PILOT} =?= true && EnteredCurrentStatus > {int(now_s - HISTORY_S)}"
        attributes = [elements.ELEMENT, "EnteredCurrentStatus", "ExitCode", "JobStatus", "ExitBySignal"]
        found: dict[str, list[Ended]] = {}
        for ad in self._schedd.history(since, attributes, HISTORY_LIMIT):
            if int(ad.get("JobStatus", 0)) != COMPLETED:
                continue  # removed by hand: nothing is known about the element
            code = 128 if ad.get("ExitBySignal") else int(ad.get("ExitCode", 0))
            found.setdefault(str(ad.get(elements.ELEMENT, "")), []).append(
                Ended(float(ad["EnteredCurrentStatus"]), code)
            )
        return found

    def _demands(self) -> list[Demand]:
        where = f"JobStatus == {IDLE} && {elements.IS_PILOT} =!= true && JobUniverse =!= {GRID_UNIVERSE}"
        shapes = Counter(
            (_number(ad, "RequestCpus", 1), _number(ad, "RequestMemory", 0), _number(ad, *_DURATIONS, 0))
            for ad in self._schedd.query(where, ["RequestCpus", "RequestMemory", *_DURATIONS])
        )
        return [Demand(max(1, cores), memory, wall, count) for (cores, memory, wall), count in shapes.items()]


def _number(ad: Any, *names_and_default: Any) -> int:
    """Return the first attribute that evaluates to a number."""
    *names, default = names_and_default
    for name in names:
        value = ad.eval(name) if name in ad else None
        if isinstance(value, int | float):
            return int(value)
    return int(default)


def presences(overview: Overview, known: Sequence[Element], now_s: float) -> dict[str, Presence]:
    """Return what each element has: pure.  A pilot that runs for long and is not in the pool is not waited for."""
    serving = {slot.pilot for slot in overview.glideins}
    free: Counter[str] = Counter()
    for slot in overview.glideins:
        if not slot.reason:
            free[slot.pilot.partition("/")[0]] += slot.free_cores
    found = {}
    for element in known:
        own = [pilot for pilot in overview.pilots if pilot.element == element.name]
        running = [pilot for pilot in own if pilot.status == RUNNING]
        found[element.name] = Presence(
            waiting=sum(pilot.status == IDLE for pilot in own),
            running=len(running),
            held=sum(pilot.status == HELD for pilot in own),
            free_cores=free[element.name],
            starting=sum(p.name not in serving and now_s - p.since_s < LANDING_S for p in running),
            ended=tuple(overview.ended.get(element.name, ())),
        )
    return found


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except SiteError:
        raise
    except Exception as error:  # the bindings raise their own kinds of nearly every built-in exception
        text = " ".join(str(error).split()) or type(error).__name__
        raise SiteError(f"{what}: {text}", remedy="see condor_q, condor_status and CONDOR_CONFIG") from error


def as_rows(overview: Overview, now_s: float) -> list[dict[str, Any]]:
    """Return pilots and their glide-ins together, for people and scripts: pure."""
    names = {IDLE: "waiting", RUNNING: "running", REMOVED: "removed", COMPLETED: "ended", HELD: "held"}
    slots = {slot.pilot: slot for slot in overview.glideins}
    rows: list[dict[str, Any]] = []
    for pilot in overview.pilots:
        slot = slots.pop(pilot.name, None)
        rows.append(
            {
                "pilot": pilot.name,
                "state": "serving" if slot else names.get(pilot.status, str(pilot.status)),
                "since_s": round(now_s - pilot.since_s),
                "cores": slot.cores if slot else 0,
                "free_cores": slot.free_cores if slot else 0,
                "reason": pilot.hold_reason or (slot.reason if slot else ""),
            }
        )
    rows += [
        {
            "pilot": s.pilot or s.name,
            "state": "serving",
            "since_s": 0,
            "cores": s.cores,
            "free_cores": s.free_cores,
            "reason": s.reason,
        }
        for s in slots.values()
    ]
    return rows
