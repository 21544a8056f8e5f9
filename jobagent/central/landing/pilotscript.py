"""The pilot script: a template filled in once, by whoever builds the bundle.

The script that lands on a worker node carries the digests of what it may run, the settings of the agent and the
first root of trust, so that nothing else that it fetches needs to be trusted.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from jobagent.errors import ConfigurationError

TEMPLATE_NAME = "pilot.sh"
MIN_MEMORY_MB = 512  # a glide-in with one slot and the node service
_PLACEHOLDER = re.compile(r"@([A-Z0-9_]+)@")
_SHELL_SAFE_URL = re.compile(r"[A-Za-z0-9:/?#\[\]@!$&()*+,;=._~%-]+")  # no quote and no blank


@dataclass(frozen=True, slots=True)
class Runtime:
    """The first stage as the pilot script knows it: the archive, and the tree that it unpacks to."""

    sha256: str
    size_bytes: int
    machine: str  # as `uname -m` says it
    file_count: int  # regular files of the tree, without SHA256SUMS
    sums_sha256: str  # of the tree's SHA256SUMS
    tree_bytes: int


@dataclass(frozen=True, slots=True)
class Landing:
    """What one VO's pilots are told.

    `runtime_urls` are tried in order; at `offer_urls` a node says that it has the runtime for its neighbours.
    """

    runtime: Runtime
    runtime_urls: Sequence[str]
    settings: str
    root_metadata: bytes
    offer_urls: Sequence[str] = ()
    scratch_mb: int = 1000  # for packages and jobs, beside the runtime itself
    memory_mb: int = MIN_MEMORY_MB


@dataclass(frozen=True, slots=True)
class Membership:
    """Whose pilots they are: the VO's catalogue, and the pool that they join, if any."""

    vo: str
    catalogue_urls: Sequence[str]
    pool: str = ""
    condor: str = ""
    agent: str = ""


def settings_of(membership: Membership, extra: str = "") -> str:
    """Return the agent's settings on the worker node; `extra` are more lines of TOML, in sections of their own.

    The script sets the variables: its directory goes with the pilot, the packages stay where the site has a cache.
    """
    glidein = {"pool": membership.pool, "condor": membership.condor, "agent": membership.agent}
    sections: dict[str, dict[str, object]] = {
        "site": {"scratch": "$JOBAGENT_PILOT_DIR"},
        "catalogue": {"urls": list(membership.catalogue_urls), "root": "$JOBAGENT_PILOT_DIR/root.json"},
        "job": {"vo": membership.vo},
        "plugins": {"enable": ["sharedcache"]},
        "sharedcache": {"root": "$JOBAGENT_PACKAGES"},
        "node": {"socket": "$JOBAGENT_PILOT_DIR/node.sock"},
        "glidein": {key: value for key, value in glidein.items() if value},
    }
    try:
        own = tomllib.loads(extra)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the additional settings are no TOML: {error}") from error
    for section, values in own.items():
        if not isinstance(values, dict):
            raise ConfigurationError(f"the additional settings have {section} outside of any section")
        sections.setdefault(section, {}).update(values)
    # a string, number or list of these in JSON means the same in TOML
    return "".join(
        f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for section, values in sections.items()
        if values
    )


def template() -> str:
    """Return the script before it is filled in: beside this module when installed, else from the source tree."""
    packaged = resources.files("jobagent.central.landing") / TEMPLATE_NAME
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[3] / "pilot" / TEMPLATE_NAME).read_text(encoding="utf-8")


def render(landing: Landing) -> str:
    """Return the script for `landing`.

    Raises:
        ConfigurationError: A value cannot stand in a shell script as it is.
    """
    runtime = landing.runtime
    values = {
        "RUNTIME_SHA256": runtime.sha256,
        "RUNTIME_BYTES": str(runtime.size_bytes),
        "RUNTIME_FILES": str(runtime.file_count),
        "RUNTIME_SUMS_SHA256": runtime.sums_sha256,
        "RUNTIME_URLS": " ".join(_checked_url(url) for url in landing.runtime_urls),
        "RUNTIME_MACHINE": runtime.machine,
        "OFFER_URLS": " ".join(_checked_url(url) for url in landing.offer_urls),
        "NEED_DISK_MB": str(landing.scratch_mb + (runtime.size_bytes + runtime.tree_bytes) // 1_000_000 + 1),
        "NEED_MEMORY_MB": str(landing.memory_mb),
        "SETTINGS": _here_document(landing.settings, "END_OF_SETTINGS"),
        "ROOT_METADATA": _here_document(landing.root_metadata.decode(), "END_OF_ROOT"),
    }
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template())


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or not _SHELL_SAFE_URL.fullmatch(url):
        raise ConfigurationError(
            f"{url!r} is no http or https URL that a script can hold", remedy="percent-encode it"
        )
    return url


def _here_document(text: str, end: str) -> str:
    lines = text.rstrip("\n").split("\n")
    if end in lines or "\0" in text:
        raise ConfigurationError(f"a text for the pilot script holds the line {end!r} or a NUL")
    return "\n".join(lines)
