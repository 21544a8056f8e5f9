"""All providers of one agent, collected once: what `main()` builds and every phase is handed.

Knows the façade and the contracts; imports no provider.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobagent.config import Config, SiteSettings
from jobagent.contracts import (
    Cache,
    Catalogue,
    Context,
    EnvironmentProvider,
    InputSource,
    ManagedCache,
    Parser,
    Seeder,
    Transport,
    Unpacker,
    Verifier,
)
from jobagent.errors import ConfigurationError
from jobagent.events import Event, Events
from jobagent.job.cache import PrivateCache
from jobagent.pluginmanager import Plugins, load


@dataclass(slots=True)
class Kit:
    """The object graph of an agent.  Providers that nobody asks for cost nothing: they do their work lazily."""

    config: Config
    plugins: Plugins
    context: Context
    events: Events
    platform: str
    parsers: Sequence[Parser]
    catalogues: Sequence[Catalogue]
    transports: Sequence[Transport]
    verifiers: Sequence[Verifier]
    unpackers: Sequence[Unpacker]
    environments: Sequence[EnvironmentProvider]
    inputs: Sequence[InputSource]
    cache: Cache
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def catalogue(self) -> Catalogue:
        """The first catalogue; raises ConfigurationError where none is configured."""
        if not self.catalogues:
            raise ConfigurationError(
                f"{self.config.source}: no catalogue is configured", remedy='set [catalogue] urls = ["https://…"]'
            )
        return self.catalogues[0]

    @property
    def seeders(self) -> Sequence[Seeder]:
        """The transports that can give to others."""
        return [t for t in self.transports if isinstance(t, Seeder)]

    @property
    def keeps_archives(self) -> bool:
        """Whether an archive is of use once its tree is there."""
        return any(seeder.is_seeding for seeder in self.seeders)

    def close(self) -> None:
        """Free network and cache; idempotent."""
        for transport in self.transports:
            transport.close()
        self.cache.close()


def platform_of(config: Config) -> str:
    """The platform of packages for this node: the site's word, else `Linux-x86_64` and the like."""
    host = os.uname()
    return config.get(SiteSettings).platform or f"{host.sysname}-{host.machine}"


def scratch_of(config: Config) -> Path:
    """The directory under which jobs get theirs: the site's, else $TMPDIR, else /tmp."""
    configured = config.get(SiteSettings).scratch
    return configured if configured != Path() else Path(os.environ.get("TMPDIR") or "/tmp")


def assemble(config: Config, *, state: Path, events: Events, plugins: Plugins | None = None) -> Kit:
    """Load the plugins and collect their providers.

    `state` is the agent's own writable directory: the private cache and the plugins' state live below it; with a
    shared cache the plugins' state lives in the cache's root.

    Raises:
        ConfigurationError: The configuration is wrong.
        PluginError: A verifier or the configured cache cannot be made.
    """
    plugins = plugins or load(config)
    platform = platform_of(config)
    context = Context(config, state, events, platform)
    cache = plugins.cache(context) or PrivateCache(state / "packages")
    if cache.is_shared:
        context = Context(config, cache.root / "state", events, platform)
    context.state.mkdir(parents=True, exist_ok=True)
    kit = Kit(
        config=config,
        plugins=plugins,
        context=context,
        events=events,
        platform=platform,
        parsers=plugins.parsers(context),
        catalogues=plugins.catalogues(context),
        transports=plugins.transports(context),
        verifiers=plugins.verifiers(context),
        unpackers=plugins.unpackers(context),
        environments=plugins.environments(context),
        inputs=plugins.inputs(context),
        cache=cache,
    )
    _connect(kit)
    return kit


def _connect(kit: Kit) -> None:
    """Let plugins choose who is evicted, and stop seeding what the cache is about to remove."""

    def listen(event: Event) -> None:
        if event.name not in {"cache.evicting", "cache.archive_dropped"}:
            return
        key = str(event.fields["digest"])
        for seeder in kit.seeders:
            seeder.unseed(key)
        if event.name == "cache.evicting":
            for entry in (e for e in kit.cache.entries() if e.key == key):
                kit.plugins.cache_evicting(entry)

    if isinstance(kit.cache, ManagedCache):
        kit.cache.order_evictions_by(kit.plugins.eviction_order)
        kit.events.subscribe(listen)
