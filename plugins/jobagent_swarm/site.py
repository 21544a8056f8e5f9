"""From a site's configuration to the options of a session: addresses, trackers, token."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from jobagent.plugin import Config, ConfigurationError
from jobagent_swarm.finding import site_value, trackers_of
from jobagent_swarm.options import Options, Role
from jobagent_swarm.settings import SwarmSettings


def options_of(config: Config, role: Role) -> Options:
    """Read `[swarm]`, the site's address and the catalogue's URLs.

    Raises:
        ConfigurationError: The token file cannot be read.
    """
    settings = config.get(SwarmSettings)
    address = str(site_value(config, "site", "address", ""))
    trackers = trackers_of(config)
    if settings.token_file != Path():
        token = _token(settings.token_file)
        trackers = tuple(f"{url}{'&' if '?' in url else '?'}k={quote(token, safe='')}" for url in trackers)
    return Options(role, settings, tuple(a.strip() for a in address.split(",") if a.strip()), trackers)


class TokenFile:
    """Notices when the announce token was replaced: tokens live for hours, a node service for weeks."""

    def __init__(self, config: Config) -> None:
        self._path = config.get(SwarmSettings).token_file
        self._seen = self._stamp()

    def has_changed(self) -> bool:
        """Whether there is another token than at the last call; a file that is gone leaves the old one in use."""
        stamp = self._stamp()
        if stamp in {None, self._seen}:
            return False
        self._seen = stamp
        return True

    def _stamp(self) -> tuple[int, int] | None:
        if self._path == Path():
            return None
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns


def _token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read announce token {path}: {error}") from error
