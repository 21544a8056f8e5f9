"""The hooks: all that a plugin may be asked.

Registration hooks return providers and are called once, when an agent starts, in the main thread, with a deadline
of `[plugins] hook_timeout_s`.  Lifecycle hooks tell what happens; they are called one plugin at a time.  In every
hook: `None` means "nothing from me"; raising costs this plugin its say in this call, is logged with its
distribution, and never stops the others (except where a docstring says so).  Arguments may be added, never renamed;
an implementation takes only those it wants.

Order is the order of entry-point names, unless `tryfirst`/`trylast` is given to the implementation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pluggy

from jobagent.contracts import (
    CacheEntry,
    CacheFactory,
    Catalogue,
    Context,
    EnvironmentProvider,
    InputSource,
    Parser,
    Transport,
    Unpacker,
    Verifier,
)
from jobagent.events import Event
from jobagent.model import Environment, Installed, Job, Outcome, Package

PROJECT = "jobagent"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def jobagent_settings() -> Mapping[str, type] | None:
    """Declare configuration sections: `{"section": DataclassOfSettings}`.

    When: before any other hook, at start, as the user of the agent.  Raising: the plugin is left out.

    Example:
        @hookimpl
        def jobagent_settings():
            return {"mytransport": MySettings}
    """


@hookspec
def jobagent_parsers(context: Context) -> Sequence[Parser] | None:
    """Provide parsers of job descriptions.

    Example:
        @hookimpl
        def jobagent_parsers(context):
            return [CwlParser()]
    """


@hookspec
def jobagent_catalogues(context: Context) -> Sequence[Catalogue] | None:
    """Provide catalogues of packages, asked in order; the first that has the package is used.

    Example:
        @hookimpl
        def jobagent_catalogues(context):
            return [TufCatalogue(context.config.get(CatalogueSettings), context.state / "catalogue")]
    """


@hookspec
def jobagent_transports(context: Context) -> Sequence[Transport] | None:
    """Provide ways to fetch archives (and, as `Seeder`, to offer them).

    Example:
        @hookimpl
        def jobagent_transports(context):
            return [Swarm(context)]
    """


@hookspec
def jobagent_verifiers(context: Context) -> Sequence[Verifier] | None:
    """Provide verifiers of archives; all must agree.  Raising here ends the agent: trust is not optional.

    Example:
        @hookimpl
        def jobagent_verifiers(context):
            return [DigestVerifier()]
    """


@hookspec
def jobagent_unpackers(context: Context) -> Sequence[Unpacker] | None:
    """Provide unpackers of archive formats; the first that names the format is used.

    Example:
        @hookimpl
        def jobagent_unpackers(context):
            return [TarUnpacker()]
    """


@hookspec
def jobagent_environments(context: Context) -> Sequence[EnvironmentProvider] | None:
    """Provide readers of packages' own set-up scripts.

    Example:
        @hookimpl
        def jobagent_environments(context):
            return [InitSh()]
    """


@hookspec
def jobagent_inputs(context: Context) -> Sequence[InputSource] | None:
    """Provide sources of input files, by URL scheme.

    Example:
        @hookimpl
        def jobagent_inputs(context):
            return [HttpInputs()]
    """


@hookspec(firstresult=True)
def jobagent_cache(context: Context) -> CacheFactory | None:
    """Provide the cache.  Stops at the first result that is not `None`; without one, each job has a private cache.

    Example:
        @hookimpl
        def jobagent_cache(context):
            return SharedCache
    """


@hookspec(firstresult=True)
def jobagent_transport_order(package: Package, names: Sequence[str]) -> Sequence[str] | None:
    """Choose the order in which transports are tried for `package`; names left out are not tried.

    When: before each download, in the thread that fetches.  Stops at the first result that is not `None`; raising
    counts as `None` from everybody: the order stays as it is.

    Example:
        @hookimpl
        def jobagent_transport_order(package, names):
            return [n for n in names if n != "http"] if package.id.name == "Huge" else None
    """


@hookspec(firstresult=True)
def jobagent_eviction_order(entries: Sequence[CacheEntry]) -> Sequence[str] | None:
    """Choose the order (keys) in which unleased packages are evicted; default: least recently used first.

    Example:
        @hookimpl
        def jobagent_eviction_order(entries):
            return [e.key for e in sorted(entries, key=lambda e: -e.size_bytes)]
    """


@hookspec
def jobagent_before_payload(job: Job, installed: Sequence[Installed], environment: Environment) -> None:
    """The packages are in place, the payload is about to start.  Raising a JobAgentError refuses the job.

    Where: in the agent, in the main thread.

    Example:
        @hookimpl
        def jobagent_before_payload(job, installed, environment):
            notify(f"starting {job.executable}")
    """


@hookspec
def jobagent_payload_tick(job: Job, elapsed_s: float) -> None:
    """The payload runs; called about every ten seconds.

    Example:
        @hookimpl
        def jobagent_payload_tick(job, elapsed_s):
            heartbeat(job.executable, elapsed_s)
    """


@hookspec
def jobagent_after_payload(job: Job, outcome: Outcome) -> None:
    """The payload and all its processes have ended, packages are still in place.

    Example:
        @hookimpl
        def jobagent_after_payload(job, outcome):
            account(outcome.cpu_s)
    """


@hookspec
def jobagent_cleanup(job: Job) -> None:
    """Leases are released; remove what the plugin made for this job.  Also called after failures.

    Example:
        @hookimpl
        def jobagent_cleanup(job):
            remove_my_files()
    """


@hookspec
def jobagent_cache_acquired(installed: Installed) -> None:
    """A lease on a package was given.

    Example:
        @hookimpl
        def jobagent_cache_acquired(installed):
            count(installed.package.id)
    """


@hookspec
def jobagent_cache_released(package: Package) -> None:
    """A lease on a package ended.

    Example:
        @hookimpl
        def jobagent_cache_released(package):
            uncount(package.id)
    """


@hookspec
def jobagent_cache_evicting(entry: CacheEntry) -> None:
    """A package is about to be removed from the cache.

    Example:
        @hookimpl
        def jobagent_cache_evicting(entry):
            log.info("%s goes", entry.package_id)
    """


@hookspec
def jobagent_machine_attributes() -> Mapping[str, str | int | float | bool] | None:
    """Attributes for the machine ad; names get the prefix `JobAgent`.

    When: every STARTD_CRON period, in the node service.

    Example:
        @hookimpl
        def jobagent_machine_attributes():
            return {"BurstBufferFreeGB": 512}
    """


@hookspec
def jobagent_metrics() -> Mapping[str, float] | None:
    """Numbers for the metrics end point, by Prometheus name.

    Example:
        @hookimpl
        def jobagent_metrics():
            return {"mytransport_bytes_total": 12345}
    """


@hookspec
def jobagent_event(event: Event) -> None:
    """Every event of the agent.  Must return at once.

    Example:
        @hookimpl
        def jobagent_event(event):
            queue.put_nowait(event)
    """
