"""What the batch system gave to a pilot: cores, memory, time, a token."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobagent.condor.language import longform
from jobagent.condor.pilots.glidein_settings import GlideinSettings
from jobagent.errors import ConfigurationError, PoolTokenRefused

MEMORY_PER_CORE_MB = 2000  # what the LHC experiments agreed on with their sites
_MAX_AD_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Slot:
    """One batch slot.  `ends_s` is seconds since the epoch, 0 where nobody said."""

    cpus: int
    memory_mb: int
    ends_s: int


def of_environment(
    settings: GlideinSettings, environ: Mapping[str, str], *, now_s: float, uptime_s: float, node_memory_mb: int
) -> Slot:
    """Return the slot that the site's settings, the batch system and the pilot script describe.

    The pilot's time runs from its start, which it tells as hundredths of a second of the node's uptime.
    """
    ad = _machine_ad(environ)
    cpus = (
        settings.cpus
        or _number(longform.expression(ad, "Cpus"))
        or _first(environ, "SLURM_CPUS_ON_NODE", "PBS_NCPUS")
        or 1
    )
    memory = settings.memory_mb or _number(longform.expression(ad, "Memory")) or _first(environ, "SLURM_MEM_PER_NODE")
    memory = memory or min(MEMORY_PER_CORE_MB * cpus, node_memory_mb)
    wall_s = _first(environ, "JOBAGENT_WALL_S")
    used_s = (
        uptime_s - _first(environ, "JOBAGENT_PILOT_STARTED_CS") / 100
        if "JOBAGENT_PILOT_STARTED_CS" in environ
        else 0.0
    )
    return Slot(cpus, memory, int(now_s + wall_s - used_s) if wall_s else 0)


def uptime_s() -> float:
    """Seconds since the node's boot."""
    return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])


def node_memory_mb() -> int:
    """The node's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def read_token(settings: GlideinSettings, environ: Mapping[str, str], *, now_s: float) -> str:
    """Return the IDTOKEN for the pool.

    Raises:
        ConfigurationError: There is none, or it cannot be read.
        PoolTokenRefused: It is past its expiry.
    """
    named = environ.get("JOBAGENT_TOKEN_FILE", "")
    path = settings.token_file if settings.token_file != Path() else Path(named) if named else None
    if path is None:
        raise ConfigurationError("no token for the pool", remedy="set JOBAGENT_TOKEN_FILE or [glidein] token_file")
    return check_token(path, now_s=now_s)


def check_token(path: Path, *, now_s: float) -> str:
    """Return the IDTOKEN in a file.

    Raises:
        ConfigurationError: It cannot be read.
        PoolTokenRefused: It is none, or past its expiry.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the pool's token {path}: {error}") from error
    expires_s = token_expiry_s(token)
    if expires_s is None:
        raise PoolTokenRefused(f"{path} holds no IDTOKEN", remedy="make one: condor_token_create")
    if expires_s <= now_s:
        raise PoolTokenRefused(
            f"the pool's token expired {now_s - expires_s:.0f} s ago",
            remedy="give pilots a new one: condor_token_create",
        )
    return token


def token_expiry_s(token: str) -> float | None:
    """Return when a JSON Web Token expires (infinity: never), or None where it is none; the pool checks the rest."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims.get("exp", "inf"))
    except (IndexError, ValueError, AttributeError, TypeError):
        return None


def _machine_ad(environ: Mapping[str, str]) -> longform.Ad:
    path = environ.get("_CONDOR_MACHINE_AD", "")
    try:
        with open(path, "rb") as stream:
            return longform.read(stream.read(_MAX_AD_BYTES))
    except OSError:
        return {}


def _first(environ: Mapping[str, str], *names: str) -> int:
    return next((n for name in names if (n := _number(environ.get(name)))), 0)


def _number(text: str | None) -> int:
    try:
        return max(0, int(float(text or 0)))
    except (ValueError, OverflowError):
        return 0
