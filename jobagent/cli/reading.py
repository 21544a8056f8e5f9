"""Reading the catalogue from the command line: which one, and the client for it.

Shared by `list`, `show`, `dependencies`, `whereis` and `get`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobagent import config as configuration
from jobagent.config import Config, JobSettings
from jobagent.contracts import Catalogue, Context
from jobagent.errors import ConfigurationError, UnknownPackage, UsageError
from jobagent.events import Event, Events
from jobagent.job import kit as kits
from jobagent.job.resolve import resolve
from jobagent.model import Package, PackageSpec, Plan, Requirement, is_update
from jobagent.pluginmanager import load


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the catalogue is; by default it is the configured one."""
    parser.add_argument("--catalogue", metavar="URL", action="append", default=[], help="base URL, or a directory")
    parser.add_argument("--root", metavar="FILE", type=Path, help="root metadata that vouches for it")
    parser.add_argument("--json", action="store_true", help="print JSON")


def configured(args: argparse.Namespace) -> Config:
    """Return the configuration with what the command line says about the catalogue."""
    config = configuration.load(args.config)
    if not args.catalogue and not args.root:
        return config
    values: dict[str, Any] = {}
    directories = [Path(url) for url in args.catalogue if "://" not in url]
    for directory in directories:
        if not (directory / "metadata").is_dir():
            raise UsageError(f"--catalogue {directory} is neither a URL nor a catalogue directory")
    if args.catalogue:
        values["urls"] = [url if "://" in url else Path(url).resolve().as_uri() for url in args.catalogue]
    root = args.root or (directories[0] / "metadata" / "1.root.json" if directories else None)
    if root is not None:
        values["root"] = str(root.resolve())
    return config.replaced("catalogue", values, source="command line")


def open_catalogue(args: argparse.Namespace) -> tuple[Catalogue, Config]:
    """Return the client of the first catalogue, brought up to date, and the configuration.  Warnings go to stderr.

    Raises:
        ConfigurationError: No catalogue is configured, or wrongly.
    """
    config = configured(args)
    plugins = load(config)
    config.check()
    events = Events()
    events.subscribe(_print_warning)
    catalogues = plugins.catalogues(Context(config, _state_directory(), events, kits.platform_of(config)))
    if not catalogues:
        raise ConfigurationError(
            f"{config.source}: no catalogue is configured", remedy="give --catalogue URL --root FILE, or [catalogue]"
        )
    catalogues[0].refresh(is_forced=True)
    return catalogues[0], config


def spec_of(text: str, config: Config) -> PackageSpec:
    """Return what the user named, of the configured VO where no owner is given."""
    spec = PackageSpec.parse(text)
    namespace = spec.namespace or config.get(JobSettings).vo.lower() or None
    if namespace is None:
        raise UsageError(f"{spec} names no owner", remedy=f"write VO_<ORG>@{spec}, or set [job] vo")
    return PackageSpec(spec.name, spec.version, namespace)


def plan_of(spec: PackageSpec, catalogue: Catalogue, config: Config, *, platform: str = "") -> Plan:
    """Return the closure of one package, as a job would get it."""
    requirement = Requirement((spec,), spec.namespace, platform or kits.platform_of(config))
    return resolve(requirement, catalogue)


def versions_of(spec: PackageSpec, catalogue: Catalogue) -> list[Package]:
    """Return all entries that fit, newest first; raises UnknownPackage."""
    found = [
        p
        for p in catalogue.versions(spec.namespace or "", spec.name)
        if spec.version in {None, p.id.version} and not is_update(p.platform)
    ]
    if not found:
        raise UnknownPackage(f"Package not defined: {spec}", remedy="see jobagent list")
    return sorted(found, key=lambda p: (p.published_s, p.id.version, p.platform), reverse=True)


def print_json(value: object) -> None:
    """Print JSON for scripts."""
    json.dump(value, sys.stdout, indent=2)
    print()


def as_json(package: Package) -> Mapping[str, object]:
    """Return a package for scripts."""
    return {
        "package": str(package.id),
        "namespace": package.id.namespace,
        "name": package.id.name,
        "version": package.id.version,
        "platform": package.platform,
        "state": package.state.value,
        "reason": package.reason,
        "published_s": package.published_s,
        "description": package.description,
        "licence": package.licence,
        "archive": {
            "file": package.archive.file_name,
            "format": package.archive.format,
            "sha256": package.archive.sha256,
            "bytes": package.archive.size_bytes,
            "infohash_v1": package.archive.infohash_v1,
            "infohash_v2": package.archive.infohash_v2,
        },
        "unpacked_bytes": package.tree.size_bytes,
        "files": package.tree.file_count,
        "manifest": package.tree.manifest.sha256,
        "dependencies": [str(d) for d in package.dependencies],
        "environment": [[c.action.value, c.name, c.value] for c in package.environment],
        "pfns": list(package.pfns),
        "provenance": package.provenance.sha256 if package.provenance else "",
    }


def size(size_bytes: int) -> str:
    """Return a size for people."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _state_directory() -> Path:
    """Return where this user's command line keeps what it verified."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "jobagent"


def _print_warning(event: Event) -> None:
    if event.name == "warning":
        print(f"jobagent: warning: {event.fields['message']}", file=sys.stderr)
