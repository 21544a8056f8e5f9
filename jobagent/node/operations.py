"""What the node service does when asked: one method per operation of the protocol.

`prepare` and `release` are the two halves of a job (`jobagent.job.prepare`) in a process that outlives it; the rest
is for people and for the machine ad.
"""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from jobagent import __version__
from jobagent.config import JobSettings
from jobagent.contracts import Cache, CacheEntry, Holder, Lease, ManagedCache
from jobagent.errors import ConfigurationError, JobAgentError, JobSyntaxError, SiteError, UsageError
from jobagent.job import data, environment, requirements
from jobagent.job.kit import Kit
from jobagent.job.prepare import Prepared, prepare
from jobagent.model import Job, PackageSpec, Plan, Requirement, is_update
from jobagent.node.currentness import CurrentCatalogue
from jobagent.node.health import Health
from jobagent.node.holdings import Holdings
from jobagent.node.request import Arguments, Request
from jobagent.node.showing import shown
from jobagent.node.wire import MAX_REQUEST_BYTES

log = logging.getLogger("jobagent.node")

Answer = dict[str, Any]
Operation = Callable[[Request], Answer]
SHUTDOWN = "shutdown"


class Operations:
    """The operations over one kit.  Called from many threads at once."""

    def __init__(self, kit: Kit, holdings: Holdings, health: Health) -> None:
        self._kit = kit
        self._holdings = holdings
        self._health = health
        self._started_s = time.monotonic()
        self.table: Mapping[str, Operation] = {
            "hello": self.hello,
            "status": self.status,
            "prepare": self.prepare,
            "fetch": self.fetch,
            "release": self.release,
            "list": self.list,
            "du": self.usage,
            "evict": self.evict,
            "verify": self.verify,
            "pin": self.pin,
            "prewarm": self.prewarm,
            SHUTDOWN: self.shutdown,
        }

    # --- jobs

    def prepare(self, request: Request) -> Answer:
        """Get the packages of a job or a list of packages, and hold them while the holder lives."""
        arguments = request.arguments
        holder = request.peer.holder(arguments.number("holder"), arguments.text("job_id", limit=200))
        job, requirement = self._requirement(arguments)
        try:
            with shown(request.lines, self._kit.events) as (events, warnings):
                kit = replace(self._kit, cancelled=request.cancelled, events=events)
                prepared = prepare(requirement, kit, holder)
        except JobAgentError as error:
            self._health.failed(error)
            raise
        self._health.succeeded()
        answer = self._hold(request, holder, prepared)
        answer["warnings"] = [*(job.warnings if job else ()), *warnings]
        base = arguments.mapping("environment")
        if base is not None:
            made = environment.payload_environment(
                job or Job("packages"), prepared.changes, prepared.installed, base, holder.job_id
            )
            answer["environment"] = dict(made.variables)
        return answer

    def fetch(self, request: Request) -> Answer:
        """Get one file by its torrent (`torrent`, base64; `url` tells where that came from), and hold it."""
        arguments = request.arguments
        holder = request.peer.holder(arguments.number("holder"), arguments.text("job_id", limit=200))
        try:
            torrent = base64.b64decode(arguments.text("torrent", limit=MAX_REQUEST_BYTES), validate=True)
        except ValueError as error:
            raise UsageError("argument torrent must be base64") from error
        wanted = data.read(torrent, arguments.text("url"))
        start = time.monotonic()
        deadline = start + self._kit.config.get(JobSettings).fetch_timeout_s
        with shown(request.lines, self._kit.events) as (events, _):
            events.emit("plan.made", digests=wanted.package.key)
            kit = replace(self._kit, cancelled=request.cancelled, events=events)
            build = data.DataBuild(wanted, kit, deadline=deadline)
            lease = kit.cache.acquire(wanted.package, holder, build, cancelled=request.cancelled)
        prepared = Prepared(Plan((wanted.package,), ()), (lease,), (), None, time.monotonic() - start)
        if lease.installed.archive is not None:
            try:
                data.seed(wanted.package, lease.installed.archive, self._kit)
            except (JobAgentError, OSError) as error:
                log.warning("cannot seed %s: %s", wanted.package.archive.file_name, error)
        return self._hold(request, holder, prepared)

    def release(self, request: Request) -> Answer:
        """End a holding, by the id that `prepare` gave or by the job's id."""
        holding = self._holdings.find(request.arguments.text("id", limit=200))
        if holding is None:
            return {"ok": True, "released": 0}
        if request.peer.uid != holder_uid(holding.leases) and not request.peer.is_admin:
            raise UsageError(f"job {holding.holder.job_id} is not of uid {request.peer.uid}")
        return {"ok": True, "released": self._holdings.release(holding.id)}

    def prewarm(self, request: Request) -> Answer:
        """Install packages without holding them."""
        request.require_admin()
        _, requirement = self._requirement(request.arguments)
        holder = request.peer.holder(0, "prewarm")
        with shown(request.lines, self._kit.events) as (events, _):
            kit = replace(self._kit, cancelled=request.cancelled, events=events)
            prepared = prepare(requirement, kit, holder)
        give_back(self._kit, prepared.leases)
        return self._prepared(prepared)

    # --- the cache

    def list(self, request: Request) -> Answer:
        """What is installed."""
        return {"ok": True, "entries": [asdict(entry) for entry in self._kit.cache.entries()]}

    def usage(self, request: Request) -> Answer:
        """What the cache takes."""
        return {"ok": True, "root": str(self._kit.cache.root), "usage": self._usage()}

    def evict(self, request: Request) -> Answer:
        """Remove packages that nobody uses."""
        request.require_admin()
        return self._each(request, self._kit.cache.evict)

    def verify(self, request: Request) -> Answer:
        """Hash packages; damaged ones go to quarantine."""
        request.require_admin()
        return self._each(request, self._kit.cache.verify)

    def pin(self, request: Request) -> Answer:
        """Keep packages from eviction, or with `"unpin": true` no longer."""
        request.require_admin()
        cache, is_pinned = managed(self._kit.cache), not request.arguments.flag("unpin")
        return self._each(request, lambda key: cache.pin(key, is_pinned=is_pinned))

    # --- the service

    def hello(self, request: Request) -> Answer:
        """Who answers."""
        return {"ok": True, "version": __version__, "platform": self._kit.platform, "root": str(self._kit.cache.root)}

    def status(self, request: Request) -> Answer:
        """All that the machine ad and `jobagent node --status` say."""
        kit, reason = self._kit, self._health.reason
        holdings = self._holdings.all()
        freshness = next((c.freshness for c in kit.catalogues if isinstance(c, CurrentCatalogue)), None)
        swarm: dict[str, float] = {}
        for seeder in kit.seeders:
            for name, value in seeder.status().items():
                swarm[name] = swarm.get(name, 0.0) + value
        entries = [e for e in kit.cache.entries() if not is_update(e.platform)]
        return {
            "ok": True,
            "version": __version__,
            "platform": kit.platform,
            "uptime_s": time.monotonic() - self._started_s,
            "ready": not reason,
            "reason": reason,
            "failures": self._health.failures,
            "holders": len(holdings),
            "leases": sum(len(h.leases) for h in holdings),
            "packages": sorted({e.package_id for e in entries}),
            "leased_packages": sorted({e.package_id for e in entries if e.leases}),
            "protection": kit.cache.protection if isinstance(kit.cache, ManagedCache) else "private",
            "root": str(kit.cache.root),
            "usage": self._usage(),
            "swarm": swarm,
            "catalogue": asdict(freshness) if freshness else None,
            "attributes": dict(kit.plugins.machine_attributes()),
        }

    def shutdown(self, request: Request) -> Answer:
        """Let the service end, which it does once this is answered; leases stay with their holders."""
        request.require_admin()
        return {"ok": True}

    # --- parts

    def _hold(self, request: Request, holder: Holder, prepared: Prepared) -> Answer:
        """Hold what was prepared for whoever asked, if he is still there."""
        holding = self._holdings.add(holder, prepared.leases)
        if holding is None or request.cancelled.is_set():
            if holding is not None:
                self._holdings.release(holding.id)
            raise SiteError(f"the holder or client of job {holder.job_id} ended while its packages were prepared")
        return self._prepared(prepared) | {"id": holding.id}

    def _requirement(self, arguments: Arguments) -> tuple[Job | None, Requirement]:
        kit = self._kit
        text = arguments.text("job", limit=MAX_REQUEST_BYTES)
        if text:
            parsed = requirements.parse(
                text, kit.parsers, dialect=arguments.text("dialect"), arguments=arguments.texts("arguments")
            )
            return parsed, requirements.requirement_of(parsed, kit.config, kit.platform)
        specs = tuple(PackageSpec.parse(item) for item in arguments.texts("packages"))
        if not specs:
            raise JobSyntaxError("neither a job nor packages are named")
        namespace = arguments.text("vo", limit=200).lower() or kit.config.get(JobSettings).vo.lower()
        is_preinstalled_only = arguments.flag("preinstalled_only")
        return None, Requirement(specs, namespace or None, kit.platform, is_preinstalled_only)

    def _prepared(self, prepared: Prepared) -> Answer:
        packages = [
            {
                "id": str(i.package.id),
                "digest": i.package.key,
                "tree": str(i.tree),
                "cache_hit": i.is_cache_hit,
                "seeder_bytes": i.traffic.seeder_bytes,
                "neighbour_bytes": i.traffic.neighbour_bytes,
                "web_bytes": i.traffic.web_bytes,
            }
            for i in prepared.installed
        ]
        return {
            "ok": True,
            "packages": packages,
            "changes": [[c.action.value, c.name, c.value] for c in prepared.changes],
            "seconds": prepared.seconds,
            "catalogue_version": prepared.freshness.version if prepared.freshness else 0,
        }

    def _each(self, request: Request, act: Callable[[str], bool]) -> Answer:
        """Apply `act` to the named packages, each by its id or the start of its digest; all of them for `*`."""
        entries = self._kit.cache.entries()
        keys: dict[str, str] = {}
        for name in request.arguments.texts("packages"):
            found = {e.key: e.package_id for e in entries if matches(e, name)}
            if not found and name != "*":
                raise UsageError(f"no package {name[:200]} in the cache", remedy="see jobagent cache list")
            keys |= found
        return {"ok": True, "results": [{"key": k, "id": i, "done": act(k)} for k, i in keys.items()]}

    def _usage(self) -> Answer | None:
        cache = self._kit.cache
        if not isinstance(cache, ManagedCache):
            return None
        usage = cache.usage()
        return asdict(usage) | {"used_bytes": usage.used_bytes, "saved_bytes": usage.saved_bytes}


def matches(entry: CacheEntry, name: str) -> bool:
    """Whether `name` means the entry: `*`, its id (`VO_ALICE@ROOT::v6`), or at least six digits of its digest."""
    return name in ("*", entry.package_id) or (len(name) >= 6 and entry.key.startswith(name.lower()))


def managed(cache: Cache) -> ManagedCache:
    """Return the cache where it outlives jobs; raises ConfigurationError where it does not."""
    if not isinstance(cache, ManagedCache):
        raise ConfigurationError("the cache cannot be managed", remedy='set [plugins] enable = ["sharedcache"]')
    return cache


def give_back(kit: Kit, leases: Sequence[Lease]) -> None:
    """Release leases and tell plugins."""
    for lease in reversed(leases):
        kit.cache.release(lease)
        kit.plugins.cache_released(lease.installed.package)
        if not kit.cache.is_shared:  # without the shared cache a package goes with its last job
            kit.cache.evict(lease.installed.package.key)


def holder_uid(leases: Sequence[Lease]) -> int:
    """Whose leases they are; -1 where there are none."""
    return leases[0].holder.uid if leases else -1
