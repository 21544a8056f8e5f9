"""From a site's configuration to the options of a session: addresses, trackers, token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jobagent.plugin import Config, ConfigurationError
from jobagent_swarm.options import Options, Role
from jobagent_swarm.settings import SwarmSettings


def options_of(config: Config, role: Role) -> Options:
    """Read `[swarm]`, the site's address and the catalogue's URLs.

    Raises:
        ConfigurationError: The token file cannot be read.
    """
    settings = config.get(SwarmSettings)
    address = str(_value(config, "site", "address", ""))
    trackers = settings.trackers or tuple(announce_urls(_value(config, "catalogue", "urls", ())))
    if settings.token_file != Path():
        token = _token(settings.token_file)
        trackers = tuple(f"{url}{'&' if '?' in url else '?'}k={quote(token, safe='')}" for url in trackers)
    return Options(role, settings, tuple(a.strip() for a in address.split(",") if a.strip()), trackers)


def announce_urls(catalogue_urls: Iterable[str]) -> list[str]:
    """The trackers of catalogues that `jobagent serve` serves: `announce` below their URL."""
    return [f"{u.rstrip('/')}/announce" for u in catalogue_urls if u.startswith(("http://", "https://"))]


def _value(config: Config, section: str, key: str, default: Any) -> Any:
    """A setting of a section that belongs to somebody else, who may be absent."""
    cls = config.sections.get(section)
    if cls is None or key not in {f.name for f in dataclasses.fields(cls)}:
        return default
    return getattr(config.get(cls), key)


def _token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read announce token {path}: {error}") from error
