"""Site configuration: a TOML file decoded strictly into frozen dataclasses.

Every section is a dataclass; plugins bring theirs through `jobagent_settings`.  An unknown key is an error that
names the nearest known one.  A field's documentation is `metadata["doc"]`, from which `docs/configuration.md` is
generated.  No key disables verification.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jobagent.errors import ConfigurationError

T = TypeVar("T")

SYSTEM_FILE = Path("/etc/jobagent/jobagent.toml")
ENVIRONMENT_VARIABLE = "JOBAGENT_CONFIG"


def setting(default: Any, doc: str) -> Any:
    """Declare a field of a settings dataclass with its default and its one-sentence documentation."""
    if isinstance(default, list | dict):
        raise TypeError("settings are immutable: use a tuple")
    return dataclasses.field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """`[site]`: where this node is and where it may work."""

    name: str = setting("", "Name of the site, as the tracker and the machine ad know it.")
    platform: str = setting("", "Platform of packages; empty: `uname -s`-`uname -m`, as in Linux-x86_64.")
    scratch: Path = setting(Path(), "Directory on a local disk for jobs; empty: $TMPDIR or /tmp.")
    address: str = setting("", "Address to bind to and to announce; empty: all interfaces.")


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """`[plugins]`: which plugins are on."""

    disable: tuple[str, ...] = setting((), "Entry-point names of plugins to leave out.")
    enable: tuple[str, ...] = setting((), "Plugins that are off unless named here, such as `sharedcache`.")
    hook_timeout_s: float = setting(30.0, "Seconds that one plugin may take in a lifecycle hook.")


@dataclass(frozen=True, slots=True)
class JobSettings:
    """`[job]`: defaults and limits for every job."""

    vo: str = setting("", "VO of jobs that do not say theirs, e.g. `alice`.")
    wall_limit_s: int = setting(21600, "Wall limit of a job without TTL; AliEn's default is six hours.")
    kill_grace_s: float = setting(10.0, "Seconds between SIGTERM and SIGKILL for a payload.")
    fetch_timeout_s: float = setting(3600.0, "Seconds that all downloads of one job may take.")
    parallel_installs: int = setting(2, "Packages that are unpacked at the same time.")
    sandbox: str = setting("auto", "Read-only view of packages: `auto`, `bubblewrap` or `none`.")


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """`[node]`: the node service."""

    socket: Path = setting(
        Path(),
        "Unix socket of the node service; empty: $JOBAGENT_SOCKET, /run/jobagent/node.sock, or the user's own.",
    )
    socket_mode: int = setting(
        0o600, "Who may connect: 0o600 the user of the service, 0o660 its group, 0o666 everybody's jobs."
    )
    user: str = setting("", "User that a service started by root becomes; empty: it stays root.")
    idle_exit_s: float = setting(0.0, "End after so many seconds without a lease; 0: never.")
    refresh_interval_s: float = setting(60.0, "Seconds between refreshes of the catalogue in the background.")
    sweep_interval_s: float = setting(60.0, "Seconds between sweeps of what ended processes left behind.")
    failures_before_pause: int = setting(3, "Failed preparations in a row after which the node says it is not ready.")
    pause_s: float = setting(60.0, "Seconds of the first pause after failures; each further one is twice as long.")


CORE_SECTIONS: Mapping[str, type] = {
    "site": SiteSettings,
    "plugins": PluginSettings,
    "job": JobSettings,
    "node": NodeSettings,
}


class Config:
    """A raw configuration, decoded section by section as plugins declare theirs."""

    def __init__(self, raw: Mapping[str, Any] | None = None, *, source: str = "defaults") -> None:
        self._raw: dict[str, Any] = dict(raw or {})
        self._source = source
        self._types: dict[str, type] = {}
        self._decoded: dict[type, Any] = {}
        for section, cls in CORE_SECTIONS.items():
            self.declare(section, cls)

    @property
    def source(self) -> str:
        """Where the configuration came from, for messages."""
        return self._source

    @property
    def sections(self) -> Mapping[str, type]:
        """All declared sections and their dataclasses."""
        return types.MappingProxyType(self._types)

    def replaced(self, section: str, values: Mapping[str, Any], *, source: str) -> Config:
        """Return a configuration in which `values` replace those of a section; plugins have not declared theirs yet.

        Values are as in TOML: strings for paths, lists for tuples.
        """
        raw = {**self._raw, section: {**self._raw.get(section, {}), **values}}
        return Config(raw, source=f"{self._source} and {source}")

    def declare(self, section: str, cls: type) -> None:
        """Register and decode a section; raises ConfigurationError on a bad value."""
        value = self._raw.get(section, {})
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{self._source}: {section} must be a table")
        self._types[section] = cls
        self._decoded[cls] = decode(cls, value, where=f"{self._source}: [{section}]")

    def get(self, cls: type[T]) -> T:
        """Return the decoded section of that dataclass."""
        return typing.cast(T, self._decoded[cls])

    def check(self) -> None:
        """Raise ConfigurationError where the file has a section that nobody declared."""
        for section in self._raw:
            if section not in self._types:
                near = nearest(section, self._types)
                hint = f"did you mean [{near}]?" if near else f"known: {', '.join(sorted(self._types))}"
                raise ConfigurationError(f"{self._source}: unknown section [{section}]", remedy=hint)


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration: `path`, else $JOBAGENT_CONFIG, else the user's file, else the system's, else defaults.

    Raises:
        ConfigurationError: The file cannot be read or is not valid TOML, or a value is wrong.
    """
    user_file = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "jobagent" / "jobagent.toml"
    named = path or (Path(environ[ENVIRONMENT_VARIABLE]) if environ.get(ENVIRONMENT_VARIABLE) else None)
    found = named or next((f for f in (user_file, SYSTEM_FILE) if f.is_file()), None)
    if found is None:
        return Config()
    try:
        raw = tomllib.loads(found.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read configuration {found}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{found}: {error}") from error
    return Config(raw, source=str(found))


def decode(cls: type[T], table: Mapping[str, Any], *, where: str) -> T:
    """Make an instance of dataclass `cls` from `table`; raises ConfigurationError with key and expectation."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls) if table else {}  # they are compiled from text: only where they are needed
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            near = nearest(key, fields)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(sorted(fields))}"
            raise ConfigurationError(f"{where}: unknown key {key}", remedy=hint)
        values[key] = _convert(hints[key], value, f"{where} {key}")
    return cls(**values)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like `word`, empty where none is."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(_convert(item, v, where) for v in value)
    if hint is Path and isinstance(value, str):
        return Path(os.path.expandvars(value)).expanduser() if value else Path()
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and issubclass(hint, enum.StrEnum) and isinstance(value, str):
        if value in list(hint):
            return hint(value)
        raise ConfigurationError(f"{where} is {value!r}, expected one of {', '.join(hint)}")
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return decode(hint, value, where=where)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    raise ConfigurationError(f"{where} is {value!r}, expected {name}")
