"""Requirement → Prepared: packages resolved, leased, seeded, and the environment that they make.

The half of a job that is the same under `jobagent run`, the node service and any other workload manager; `release`
is the other half.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import NamedTuple

from jobagent.config import JobSettings
from jobagent.contracts import Built, Freshness, Holder, Lease, Staging
from jobagent.errors import JobError, UnknownPackage
from jobagent.job import environment
from jobagent.job.kit import Kit
from jobagent.job.resolve import resolve
from jobagent.model import EnvironmentChange, Installed, Package, Plan, Requirement, Traffic

PARALLEL_FETCHES = 8  # the swarm serves several torrents at once; more only adds threads
POLL_S = 0.1  # how late a cancellation from outside may be noticed


class Prepared(NamedTuple):
    """What a job holds until `release`.  `leases` are in the order of installation."""

    plan: Plan
    leases: tuple[Lease, ...]
    changes: tuple[EnvironmentChange, ...]
    freshness: Freshness | None
    seconds: float

    @property
    def installed(self) -> tuple[Installed, ...]:
        """The packages, dependencies first."""
        return tuple(lease.installed for lease in self.leases)

    @property
    def traffic(self) -> Traffic:
        """Bytes that this job had to fetch, by origin."""
        return sum((i.traffic for i in self.installed), Traffic())


def prepare(requirement: Requirement, kit: Kit, holder: Holder) -> Prepared:
    """Satisfy `requirement`: all packages or none.

    Raises:
        JobAgentError: Any of the tree; nothing is held then.
    """
    start = time.monotonic()
    if not requirement.packages:
        return Prepared(Plan((), ()), (), (), None, 0.0)
    with kit.events.phase("resolve"):
        freshness, plan = _resolve(requirement, kit)
    kit.events.emit("plan.made", digests=" ".join(package.key for package in plan.packages))
    for package_id in plan.defaulted:
        kit.events.emit("version.chosen", package=str(package_id), message="newest released version")
    if requirement.is_preinstalled_only:
        _require_installed(plan, kit)
    with kit.events.phase("packages", count=len(plan.packages)):
        leases = _acquire_all(plan.packages, kit, holder)
    try:
        with kit.events.phase("environment"):
            changes = environment.changes_of([lease.installed for lease in leases], kit)
    except BaseException:
        _release_leases(leases, kit)
        raise
    return Prepared(plan, tuple(leases), changes, freshness, time.monotonic() - start)


def release(prepared: Prepared, kit: Kit) -> None:
    """End all leases; idempotent."""
    _release_leases(prepared.leases, kit)


def _resolve(requirement: Requirement, kit: Kit) -> tuple[Freshness, Plan]:
    """Resolve in the catalogue as it is known here; what is not found there may be new, so it is asked for once."""
    freshness = kit.catalogue.refresh()
    try:
        return freshness, resolve(requirement, kit.catalogue)
    except UnknownPackage:
        freshness = kit.catalogue.refresh(is_forced=True)
        return freshness, resolve(requirement, kit.catalogue)


def _release_leases(leases: Sequence[Lease], kit: Kit) -> None:
    for lease in reversed(leases):
        kit.cache.release(lease)
        kit.plugins.cache_released(lease.installed.package)


def _require_installed(plan: Plan, kit: Kit) -> None:
    present = {entry.key for entry in kit.cache.entries()}
    missing = [str(p.id) for p in plan.packages if p.key not in present]
    if missing:
        raise JobError(
            f"PackagesPreInstalled is set, but {', '.join(missing)} is not on this node",
            remedy="match nodes by JobAgentCachedPackages, or drop PackagesPreInstalled",
        )


def _acquire_all(packages: Sequence[Package], kit: Kit, holder: Holder) -> list[Lease]:
    """Lease all packages, several at a time; on the first failure stop the others and hold nothing."""
    settings = kit.config.get(JobSettings)
    deadline = time.monotonic() + settings.fetch_timeout_s
    unpacking = threading.Semaphore(max(1, settings.parallel_installs))
    cancelled = threading.Event()
    scoped = replace(kit, cancelled=_AnyOf(kit.cancelled, cancelled))

    failures: list[BaseException] = []  # in the order of time: the later ones are the cancelled

    def lease_one(package: Package) -> Lease:
        def build(staging: Staging) -> Built:
            from jobagent.job.build import Build
            from jobagent.job.upgrade import Upgrade

            full = Build(package, scoped, deadline=deadline, unpacking=unpacking)
            return Upgrade(package, scoped, deadline=deadline, full=full)(staging)

        lease = kit.cache.acquire(package, holder, build, cancelled=scoped.cancelled)
        try:
            _announce(lease, kit)
        except BaseException:
            kit.cache.release(lease)
            raise
        return lease

    def acquire(package: Package) -> Lease:
        try:
            return lease_one(package)
        except BaseException as error:
            failures.append(error)
            raise

    with ThreadPoolExecutor(min(PARALLEL_FETCHES, len(packages)), thread_name_prefix="acquire") as pool:
        futures: list[Future[Lease]] = [pool.submit(acquire, package) for package in packages]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if failures or not all(f.done() for f in futures):
                cancelled.set()
                for future in futures:
                    future.cancel()
    leases = [f.result() for f in futures if not f.cancelled() and not f.exception()]
    if failures:
        _release_leases(leases, kit)
        raise failures[0]
    return leases


def _announce(lease: Lease, kit: Kit) -> None:
    """Seed the package and tell plugins and listeners of the lease."""
    installed = lease.installed
    if installed.archive is not None and kit.seeders:
        torrent = kit.catalogue.torrent(installed.package.archive)
        for seeder in kit.seeders:
            seeder.seed(installed.package, installed.archive, torrent)
    kit.plugins.cache_acquired(installed)
    kit.events.emit(
        "package.ready",
        package=str(installed.package.id),
        digest=installed.package.key,
        cache_hit=installed.is_cache_hit,
        seeder_bytes=installed.traffic.seeder_bytes,
        neighbour_bytes=installed.traffic.neighbour_bytes,
        web_bytes=installed.traffic.web_bytes,
    )


class _AnyOf(threading.Event):
    """An event that is also set when another is."""

    def __init__(self, parent: threading.Event, own: threading.Event) -> None:
        super().__init__()
        self._parent = parent
        self._own = own

    def is_set(self) -> bool:
        return self._own.is_set() or self._parent.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = POLL_S if deadline is None else min(POLL_S, deadline - time.monotonic())
            if left <= 0:
                break
            self._own.wait(left)
        return self.is_set()
