"""C++ and C headers from Debian's packages (or Ubuntu's), without a compiler and without root.

apt, with lists of its own in a directory of ours, downloads and checks the packages as for an installation; dpkg-deb
unpacks them there.  Nothing of the machine changes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from jobagent.errors import PublishError

TIMEOUT_S = 300.0
_INCLUDE = Path("/usr/include")
_VERSION = re.compile(r"^Version: (?:\d+:)?([\d.]+)", re.MULTILINE)


class Headers:
    """The headers of the release's own g++; `work` is a directory to download into.

    Raises:
        PublishError: this is no Debian, or its archive cannot be reached.
    """

    def __init__(self, work: Path) -> None:
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise PublishError(
                "this machine has no C++ compiler, and no apt-get to fetch the headers with", remedy="install g++"
            )
        self._work = work
        for directory in ("lists/partial", "cache", "packages"):
            (work / directory).mkdir(parents=True, exist_ok=True)
        self._apt("apt-get", "update", "-qq")
        match = _VERSION.search(self._apt("apt-cache", "show", "--no-all-versions", "g++"))
        if match is None:
            raise PublishError("Debian's archive does not tell its g++", remedy="install g++")
        self.release = match[1]

    def copy(self, tree: Path) -> list[Path]:
        """See `cxxheaders.Headers`: all headers of the C++ library, the C library and the kernel."""
        major = self.release.partition(".")[0]
        self._apt("apt-get", "download", "-qq", f"libstdc++-{major}-dev", "libc6-dev", "linux-libc-dev")
        for package in sorted((self._work / "packages").glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(self._work / "unpacked")], cwd=self._work)
        shutil.copytree(self._work / "unpacked" / "usr" / "include", tree / "usr" / "include")
        cxx = Path("c++") / major
        machine = [d.name for d in (tree / "usr" / "include").glob("*-linux-gnu*")]
        return [
            *(_INCLUDE / d for d in (cxx, *(Path(m) / cxx for m in machine), cxx / "backward")),
            *(_INCLUDE / m for m in machine),
            _INCLUDE,
        ]

    def _apt(self, *argv: str) -> str:
        options = {
            "Dir::State::Lists": self._work / "lists",
            "Dir::State::status": "/dev/null",  # what is installed here is no matter
            "Dir::Cache": self._work / "cache",
            "Debug::NoLocking": 1,  # locks are for whoever changes the machine
            "APT::Sandbox::User": "root",  # stay who we are: apt's own user may not enter the directory
            "Acquire::Languages": "none",
        }
        return _run(
            [argv[0], *(f"-o{name}={value}" for name, value in options.items()), *argv[1:]],
            cwd=self._work / "packages",
        )


def _run(argv: Sequence[str], cwd: Path) -> str:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        result = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=cwd, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PublishError(f"{argv[0]} failed: {error}") from error
    if result.returncode:
        words = " ".join(word for word in argv if not word.startswith("-"))
        said = next((line for line in result.stderr.splitlines() if line.startswith("E:")), result.stderr[-300:])
        raise PublishError(f"{words} failed: {said.strip()}", remedy="install g++, whose headers are then taken")
    return result.stdout
