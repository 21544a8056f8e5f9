"""Finds plugins by entry point, vets them, and calls their hooks one plugin at a time.

pluggy alone lets one raising implementation stop all later ones, and passes misspelt hooks; so nobody but this
façade calls a hook.  It isolates (an error costs the plugin its say, never the others theirs), times (a hook that
hangs is left behind in its thread) and attributes (messages name distribution and hook).
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import pluggy

from jobagent import hookspecs
from jobagent.config import Config, PluginSettings
from jobagent.contracts import (
    Cache,
    CacheEntry,
    Catalogue,
    Context,
    EnvironmentProvider,
    InputSource,
    Parser,
    Transport,
    Unpacker,
    Verifier,
)
from jobagent.entrypoints import EntryPoint, entry_points
from jobagent.errors import ConfigurationError, JobAgentError, PluginError
from jobagent.events import Event
from jobagent.model import Environment, Installed, Job, Outcome, Package

log = logging.getLogger("jobagent.plugins")

GROUP = "jobagent"
OFF_BY_DEFAULT = frozenset({"sharedcache"})


class PluginInfo(NamedTuple):
    """One plugin as `jobagent plugins` lists it.  `state` is `on`, `off`, or `broken: <why>`."""

    name: str
    distribution: str
    state: str
    hooks: tuple[str, ...] = ()


class Plugins:
    """The typed façade.  Lifecycle methods never raise for a plugin's fault, but where they say so."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._distributions: dict[str, str] = {}
        self._infos: list[PluginInfo] = []
        self._timeout_s = config.get(PluginSettings).hook_timeout_s

    @property
    def infos(self) -> Sequence[PluginInfo]:
        """All plugins found, in the order of their names."""
        return tuple(sorted(self._infos, key=lambda i: i.name))

    # --- loading

    def register(self, plugin: object, name: str, distribution: str = "") -> None:
        """Register one plugin; raises PluginError where it has an unknown hook or a wrong argument."""
        self._distributions[name] = distribution or name
        try:
            self._manager.register(plugin, name)
            self._reject_misspelt(plugin, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise PluginError(f"plugin {name} ({distribution}): {error}") from error
        callers = self._manager.get_hookcallers(plugin) or []
        self._infos.append(PluginInfo(name, distribution, "on", tuple(sorted(c.name for c in callers))))

    def skip(self, name: str, distribution: str, state: str) -> None:
        """Note a plugin that is not used, and why."""
        self._infos.append(PluginInfo(name, distribution, state))

    def declare_settings(self) -> None:
        """Collect the plugins' configuration sections and check that the file has no other."""
        for name, sections in self._each("jobagent_settings"):
            for section, cls in (sections or {}).items():
                log.debug("plugin %s declares [%s]", name, section)
                self._config.declare(section, cls)
        self._config.check()

    def _reject_misspelt(self, plugin: object, name: str) -> None:
        for attribute in dir(plugin):
            function = getattr(plugin, attribute, None)
            if getattr(function, f"{hookspecs.PROJECT}_impl", None) and not hasattr(hookspecs, attribute):
                raise PluginError(f"plugin {name} implements unknown hook {attribute}")

    # --- registration hooks

    def parsers(self, context: Context) -> list[Parser]:
        """Parsers of all plugins."""
        return self._gather("jobagent_parsers", context)

    def catalogues(self, context: Context) -> list[Catalogue]:
        """Catalogues of all plugins."""
        return self._gather("jobagent_catalogues", context)

    def transports(self, context: Context) -> list[Transport]:
        """Transports of all plugins, best rank first."""
        found: list[Transport] = self._gather("jobagent_transports", context)
        return sorted(found, key=lambda t: t.rank)

    def verifiers(self, context: Context) -> list[Verifier]:
        """Verifiers of all plugins; raises PluginError where one cannot be made."""
        return self._gather("jobagent_verifiers", context, must=True)

    def unpackers(self, context: Context) -> list[Unpacker]:
        """Unpackers of all plugins."""
        return self._gather("jobagent_unpackers", context)

    def environments(self, context: Context) -> list[EnvironmentProvider]:
        """Environment providers of all plugins."""
        return self._gather("jobagent_environments", context)

    def inputs(self, context: Context) -> list[InputSource]:
        """Input sources of all plugins."""
        return self._gather("jobagent_inputs", context)

    def cache(self, context: Context) -> Cache | None:
        """The first cache that a plugin provides; raises PluginError where one fails: its site asked for it."""
        for name, factory in self._each("jobagent_cache", must=True, context=context):
            if factory is not None:
                made: Cache = self._call(name, "jobagent_cache", functools.partial(factory, context), {})
                return made
        return None

    # --- choices

    def transport_order(self, package: Package, names: Sequence[str]) -> Sequence[str]:
        """The order in which to try transports."""
        chosen = self._first("jobagent_transport_order", package=package, names=names)
        return names if chosen is None else [n for n in chosen if n in names]

    def eviction_order(self, entries: Sequence[CacheEntry]) -> Sequence[str]:
        """Keys in the order of eviction: least recently used first, unless a plugin chooses."""
        chosen = self._first("jobagent_eviction_order", entries=entries)
        if chosen is not None:
            return list(chosen)
        return [e.key for e in sorted(entries, key=lambda e: e.last_used_s)]

    # --- lifecycle

    def before_payload(self, job: Job, installed: Sequence[Installed], environment: Environment) -> None:
        """Announce the payload; a plugin may refuse it with a JobAgentError, which is raised."""
        self._tell("jobagent_before_payload", may_refuse=True, job=job, installed=installed, environment=environment)

    def payload_tick(self, job: Job, elapsed_s: float) -> None:
        """Announce that the payload still runs."""
        self._tell("jobagent_payload_tick", job=job, elapsed_s=elapsed_s)

    def after_payload(self, job: Job, outcome: Outcome) -> None:
        """Announce the payload's end."""
        self._tell("jobagent_after_payload", job=job, outcome=outcome)

    def cleanup(self, job: Job) -> None:
        """Announce that the job is over."""
        self._tell("jobagent_cleanup", job=job)

    def cache_acquired(self, installed: Installed) -> None:
        """Announce a lease."""
        self._tell("jobagent_cache_acquired", installed=installed)

    def cache_released(self, package: Package) -> None:
        """Announce the end of a lease."""
        self._tell("jobagent_cache_released", package=package)

    def cache_evicting(self, entry: CacheEntry) -> None:
        """Announce an eviction."""
        self._tell("jobagent_cache_evicting", entry=entry)

    def event(self, event: Event) -> None:
        """Pass an event on."""
        self._tell("jobagent_event", event=event)

    def machine_attributes(self) -> Mapping[str, str | int | float | bool]:
        """Attributes for the machine ad of all plugins; of equal names the first plugin's stands."""
        return self._merge("jobagent_machine_attributes")

    def metrics(self) -> Mapping[str, float]:
        """Metrics of all plugins."""
        return self._merge("jobagent_metrics")

    # --- the one place that calls a hook

    def _implementations(self, hook: str) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
        caller = getattr(self._manager.hook, hook)
        for implementation in reversed(caller.get_hookimpls()):
            yield implementation.plugin_name, implementation.function, implementation.argnames

    def _call(self, name: str, hook: str, function: Any, arguments: Mapping[str, Any]) -> Any:
        """Run one implementation in a thread with a deadline; raise PluginError for all that is its fault."""
        box: list[Any] = []
        failure: list[BaseException] = []

        def target() -> None:
            try:
                box.append(function(**arguments))
            except BaseException as error:  # noqa: BLE001 - a border: whatever a plugin raises is its own fault
                failure.append(error)

        where = f"plugin {name} ({self._distributions.get(name, name)}) in {hook}"
        thread = threading.Thread(target=target, name=f"{hook}:{name}", daemon=True)
        thread.start()
        thread.join(self._timeout_s)
        if thread.is_alive():
            raise PluginError(f"{where}: no answer in {self._timeout_s:g} s", remedy=f"disable = [{name!r}]")
        if not failure:
            return box[0]
        if isinstance(failure[0], JobAgentError):
            raise failure[0]
        raise PluginError(f"{where}: {type(failure[0]).__name__}: {failure[0]}") from failure[0]

    def _each(self, hook: str, *, must: bool = False, **arguments: Any) -> Iterator[tuple[str, Any]]:
        for name, function, wanted in self._implementations(hook):
            try:
                yield name, self._call(name, hook, function, {a: arguments[a] for a in wanted})
            except JobAgentError as error:
                if must or isinstance(error, ConfigurationError):
                    raise
                log.error("%s", error)

    def _gather(self, hook: str, context: Context, *, must: bool = False) -> list[Any]:
        return [item for _, items in self._each(hook, must=must, context=context) for item in items or ()]

    def _first(self, hook: str, **arguments: Any) -> Any:
        return next((r for _, r in self._each(hook, **arguments) if r is not None), None)

    def _merge(self, hook: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for _, values in self._each(hook):
            for key, value in (values or {}).items():
                merged.setdefault(key, value)
        return merged

    def _tell(self, hook: str, *, may_refuse: bool = False, **arguments: Any) -> None:
        for name, function, wanted in self._implementations(hook):
            try:
                self._call(name, hook, function, {a: arguments[a] for a in wanted})
            except PluginError as error:
                log.error("%s", error)
            except JobAgentError as error:
                if may_refuse:
                    raise
                log.error("plugin %s in %s: %s", name, hook, error)


def load(config: Config) -> Plugins:
    """Return all plugins of the installed distributions that the configuration switches on.

    A plugin that cannot be imported or has a wrong hook is left out with an error in the log; a plugin that the
    configuration names and that does not exist is a ConfigurationError.
    """
    plugins = Plugins(config)
    settings = config.get(PluginSettings)
    points = {p.name: p for p in entry_points(GROUP)}
    for wanted in (*settings.enable, *settings.disable):
        if wanted not in points:
            raise ConfigurationError(
                f"{config.source}: [plugins] names {wanted!r}, which is not installed",
                remedy=f"installed: {', '.join(sorted(points))}",
            )
    off = (OFF_BY_DEFAULT - set(settings.enable)) | set(settings.disable)
    for name in sorted(points, reverse=True):  # pluggy calls last registered first
        distribution = points[name].distribution
        if name in off:
            plugins.skip(name, distribution, "off")
            continue
        try:
            plugins.register(_import(points[name]), name, distribution)
        except PluginError as error:
            log.error("%s", error)
            plugins.skip(name, distribution, f"broken: {error}")
    plugins.declare_settings()
    return plugins


def _import(point: EntryPoint) -> object:
    try:
        loaded = point.load()
    except Exception as error:
        raise PluginError(f"plugin {point.name} cannot be imported: {type(error).__name__}: {error}") from error
    return loaded if isinstance(loaded, ModuleType) or not isinstance(loaded, type) else loaded()
