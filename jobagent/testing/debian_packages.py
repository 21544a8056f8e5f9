"""Debian packages unpacked where they are wanted, without touching the host's own packages.

Packages come through `apt-get download` with lists and cache of its own, from the mirror that the machine already
uses.  Nothing is configured or run of them: what needs libraries of a newer Debian gets them, and its loader, beside
itself.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobagent.errors import ConfigurationError, SupplyError

APT_TIMEOUT_S = 300.0

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def cache_directory() -> Path:
    """Return where what is made of packages is kept: `$XDG_CACHE_HOME/jobagent`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jobagent"


def unpack(work: Path, suite: str, packages: Sequence[str]) -> tuple[Path, list[str]]:
    """Download packages of a Debian release and unpack them below `work`; return where, and the archives' names.

    Raises:
        SupplyError: They cannot be had.
        ConfigurationError: A tool is missing on this machine, or no mirror is known.
    """
    unpacked = work / "unpacked"
    archives = _download(work, suite, packages)
    for archive in archives:
        run(["dpkg-deb", "--extract", str(archive), str(unpacked)])
    return unpacked, [archive.name for archive in archives]


def needed(binary: Path) -> list[str]:
    """Return the libraries that a program or library names."""
    return run(["patchelf", "--print-needed", str(binary)]).split()


def run(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    """Run a tool and return its output; raises SupplyError where it fails, ConfigurationError where it is missing."""
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=APT_TIMEOUT_S, check=True)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{argv[0]} is not installed", remedy="make system-tools installs it") from error
    except subprocess.TimeoutExpired as error:
        raise SupplyError(f"{argv[0]} did not end within {APT_TIMEOUT_S:g} s") from error
    except subprocess.CalledProcessError as error:
        raise SupplyError(f"{' '.join(argv[:2])} failed: {error.stderr}") from error
    return done.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file: one process makes a thing, the others wait."""
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _download(work: Path, suite: str, packages: Sequence[str]) -> Sequence[Path]:
    apt = work / "apt"
    for directory in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / directory).mkdir(parents=True)
    signed_by = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    (apt / "sources.list").write_text(f"deb {signed_by}{_mirror()} {suite} main\n")
    options = [
        f"--option={key}={value}"
        for key, value in {
            "Dir::Etc::sourcelist": apt / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": apt / "lists",
            "Dir::Cache": apt / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        }.items()
    ]
    run(["apt-get", *options, "--quiet", "update"])
    run(["apt-get", *options, "--quiet", "download", *(f"{p}/{suite}" for p in packages)], cwd=apt / "debs")
    return sorted((apt / "debs").glob("*.deb"))


def _mirror() -> str:
    """Return the Debian mirror that this machine's own sources name, or $JOBAGENT_DEBIAN_MIRROR."""
    if mirror := os.environ.get("JOBAGENT_DEBIAN_MIRROR"):
        return mirror
    for source in _source_lines():
        if match := re.search(r"https?://\S+/debian/?(?=\s|$)", source):
            return match[0]
    raise ConfigurationError(
        "no Debian mirror is named in /etc/apt", remedy="set JOBAGENT_DEBIAN_MIRROR to the URL of one"
    )


def _source_lines() -> Iterator[str]:
    files: Iterable[Path] = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for file in files:
        if file.is_file():
            yield from (line for line in file.read_text().splitlines() if re.match(r"(?i)uris:|deb ", line))
