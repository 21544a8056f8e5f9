"""The queue of HTCondor as its users see it: submit, look, bring back what jobs wrote.

The only module that talks to a schedd; everybody else gets plain values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobagent.condor.access_point.translate import Submission
from jobagent.errors import JobSyntaxError, SupplyError, UsageError

if TYPE_CHECKING:
    import classad2
    import htcondor2

Value = str | int | float | bool | list["Value"] | None
Ad = Mapping[str, Value]

MAX_HISTORY = 10_000


@dataclass(frozen=True, slots=True)
class Submitted:
    """A cluster in the queue."""

    cluster: int
    count: int
    schedd: str


class Queue:
    """One schedd."""

    def __init__(self, schedd: htcondor2.Schedd, name: str) -> None:
        self._schedd = schedd
        self.name = name

    @classmethod
    def find(cls, *, pool: str = "", name: str = "") -> Queue:
        """Return the schedd `name` of the collector `pool`; without names, those of HTCondor's own configuration.

        Raises:
            SupplyError: It is not known or does not answer.
        """
        import htcondor2

        try:
            collector = htcondor2.Collector(pool or None)
            location = _located(collector, name, is_local=not pool)
            return cls(htcondor2.Schedd(location), str(location.get("Name", name)))
        except (htcondor2.HTCondorException, ValueError, TypeError, LookupError) as error:
            wanted = " ".join(filter(None, [f"schedd {name}" if name else "a schedd", f"of {pool}" if pool else ""]))
            raise SupplyError(
                f"cannot find {wanted}: {error}",
                remedy="set CONDOR_CONFIG, or give --pool HOST:PORT and --name SCHEDD",
            ) from error

    def submit(self, submission: Submission, *, is_spooled: bool) -> Submitted:
        """Queue the jobs; with `is_spooled` their files are sent to the schedd, which then needs none of ours.

        Relative file names are those of the current directory.

        Raises:
            JobSyntaxError: HTCondor refuses what the submission says.
            SupplyError: The schedd does not answer or does not let this user submit.
        """
        import htcondor2

        try:
            described = htcondor2.Submit(submission.text())
        except ValueError as error:
            raise JobSyntaxError(f"HTCondor refuses this submission: {error}") from error
        try:
            result = self._schedd.submit(described, spool=is_spooled)
            if is_spooled:
                self._schedd.spool(result)
        except (htcondor2.HTCondorException, ValueError) as error:
            raise self._refused("take the job", error) from error
        return Submitted(result.cluster(), result.num_procs(), self.name)

    def jobs(self, ids: Sequence[str], attributes: Iterable[str], *, is_everybodys: bool = False) -> list[Ad]:
        """Return the ads of jobs in the queue (with ids: of those, else of this user's); raises SupplyError."""
        import htcondor2

        options = htcondor2.QueryOpts.Default if ids or is_everybodys else htcondor2.QueryOpts.DefaultMyJobsOnly
        try:
            ads = self._schedd.query(constraint_of(ids), list(attributes), opts=options)
        except htcondor2.HTCondorException as error:
            raise self._refused("show its queue", error) from error
        return [_plain(ad) for ad in ads]

    def history(self, ids: Sequence[str], attributes: Iterable[str], *, limit: int) -> list[Ad]:
        """Return the ads of ended jobs, the newest first; raises SupplyError."""
        import htcondor2

        try:
            ads = list(self._schedd.history(constraint_of(ids), list(attributes), min(limit, MAX_HISTORY)))
        except htcondor2.HTCondorException as error:
            raise self._refused("show its history", error) from error
        return [_plain(ad) for ad in ads]

    def retrieve(self, ids: Sequence[str]) -> None:
        """Bring back the outputs of spooled jobs, to where they were submitted; raises SupplyError."""
        import htcondor2

        try:
            self._schedd.retrieve(constraint_of(ids))
        except (htcondor2.HTCondorException, ValueError) as error:
            raise self._refused("give back outputs", error) from error

    def _refused(self, what: str, error: Exception) -> SupplyError:
        return SupplyError(
            f"schedd {self.name} does not {what}: {error}", remedy="see condor_ping -type SCHEDD WRITE for the reason"
        )


def constraint_of(ids: Sequence[str]) -> str:
    """Return the expression that selects jobs `CLUSTER` or `CLUSTER.PROCESS`; without any, all.

    Raises:
        UsageError: One is not of that form.
    """
    parts = []
    for name in ids:
        cluster, dot, process = name.partition(".")
        if not (cluster.isdecimal() and (process.isdecimal() or not dot) and len(name) < 30):
            raise UsageError(
                f"{name[:80]!r} is not a job", remedy="write CLUSTER or CLUSTER.PROCESS, as in 12 or 12.0"
            )
        parts.append(f"(ClusterId == {int(cluster)}" + (f" && ProcId == {int(process)})" if dot else ")"))
    return " || ".join(parts) or "true"


def _located(collector: htcondor2.Collector, name: str, *, is_local: bool) -> classad2.ClassAd:
    """Return the ad of the schedd of that name; without one this machine's, else the only one of the pool."""
    import htcondor2

    found = collector.locate(htcondor2.DaemonType.Schedd, name) if name else None
    if name and found is None:
        raise LookupError("no schedd of that name")
    if found is None and is_local:
        with contextlib.suppress(htcondor2.HTCondorException):
            found = collector.locate(htcondor2.DaemonType.Schedd)
    if found is not None:
        return found
    all_of_them = collector.locateAll(htcondor2.DaemonType.Schedd)
    if len(all_of_them) != 1:
        names = ", ".join(str(location.get("Name")) for location in all_of_them) or "none"
        raise LookupError(f"the pool has not exactly one, but {names}")
    return all_of_them[0]


def _plain(ad: classad2.ClassAd) -> Ad:
    """Return an ad as values of Python; what has no value is left out."""
    import classad2

    found: dict[str, Value] = {}
    for name in ad:
        try:
            value = _value(ad.eval(name), ad)
        except classad2.ClassAdException:
            continue
        if value is not None:
            found[name] = value
    return found


def _value(value: object, ad: classad2.ClassAd) -> Value:
    import classad2

    if isinstance(value, classad2.Value):
        return None
    if isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list):
        return [_value(item.eval(ad) if isinstance(item, classad2.ExprTree) else item, ad) for item in value]
    return str(value)
