"""The C++ and C headers of this machine → source of a package.

ROOT's interpreter reads the headers of the standard library whenever it starts, and asks a compiler on the node where
they are; most worker nodes have neither.  With this package it needs no compiler: two variables that only ROOT's
interpreter reads name the copies.  Taken is what the headers of the standard libraries include on this machine, as
the compiler itself lists it, not all of /usr/include.  Where there is no compiler, the distribution's own packages of
headers are taken (`debian`).
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jobagent.central.packaging import debian
from jobagent.central.packaging.content import Content, assign
from jobagent.central.packaging.provenance import Component, Origin
from jobagent.central.packaging.relocatable import Report
from jobagent.errors import PublishError

COMPILER_TIMEOUT_S = 300.0
STANDARD = "c++20"  # the newest that every compiler in use knows
# Not part of C++, but included by ROOT's and experiments' own headers.
POSIX_HEADERS = (
    "aio.h", "arpa/inet.h", "cpio.h", "dirent.h", "dlfcn.h", "execinfo.h", "fcntl.h", "fnmatch.h", "glob.h",
    "grp.h", "iconv.h", "langinfo.h", "libgen.h", "link.h", "malloc.h", "monetary.h", "mqueue.h", "net/if.h",
    "netdb.h", "netinet/in.h", "netinet/tcp.h", "nl_types.h", "poll.h", "pthread.h", "pwd.h", "regex.h",
    "sched.h", "search.h", "semaphore.h", "spawn.h", "strings.h", "sys/file.h", "sys/ioctl.h", "sys/ipc.h",
    "sys/mman.h", "sys/param.h", "sys/poll.h", "sys/resource.h", "sys/select.h", "sys/sem.h", "sys/shm.h",
    "sys/socket.h", "sys/stat.h", "sys/statvfs.h", "sys/syscall.h", "sys/time.h", "sys/times.h", "sys/types.h",
    "sys/uio.h", "sys/un.h", "sys/utsname.h", "sys/vfs.h", "sys/wait.h", "syslog.h", "tar.h", "termios.h",
    "ucontext.h", "unistd.h", "utime.h", "utmpx.h", "wordexp.h",
)  # fmt: skip
_SEARCH_LIST = re.compile(r"#include <\.\.\.> search starts here:\n(.*?)End of search list", re.DOTALL)


class Headers(Protocol):
    """Where headers come from."""

    release: str
    """Of the compiler that they belong to, as `12.2.0`."""

    def copy(self, tree: Path) -> list[Path]:
        """Copy the headers to where they are, below `tree`; return their directories in the order of search."""


class CxxHeaders:
    """This machine's headers as a source; the version is the compiler's, and the C library's.

    `work` is a directory for what is downloaded where this machine has no compiler.
    """

    name = "Cxx-headers"

    def __init__(self, work: Path) -> None:
        compiler = shutil.which("c++") or shutil.which("g++")
        self._headers: Headers = Compiler(compiler) if compiler else debian.Headers(work)
        libc, libc_version = platform.libc_ver()
        self.version = f"{self._headers.release}-{libc or 'libc'}{libc_version}"

    def make(self, work: Path, report: Report) -> Content:
        """See `Source`."""
        tree = work / "tree"
        directories = self._headers.copy(tree)
        cxx = [f"{{root}}{d}" for d in directories if "c++" in d.parts]
        system = [f"-isystem {{root}}{d}" for d in directories if "c++" not in d.parts]
        return Content(
            path=tree,
            origin=Origin(
                "cxx-headers", [Component("libstdc++-headers", self.version, licence="GPL-3.0-with-GCC-exception")]
            ),
            environment=[assign("CLING_CPPSYSINCL", ":".join(cxx)), assign("EXTRA_CLING_ARGS", " ".join(system))],
            description=f"C++ and C headers {self.version}, for ROOT's interpreter on nodes without a compiler",
            licence="GPL-3.0 with GCC exception; LGPL-2.1",
        )


class Compiler:
    """The headers that a compiler of this machine includes; see `Headers`."""

    def __init__(self, program: str) -> None:
        self._program = program
        self.release = _run([program, "-dumpfullversion", "-dumpversion"]).strip()

    def copy(self, tree: Path) -> list[Path]:
        """See `Headers`."""
        directories = self._search_list()
        for header in self._included(directories):
            target = tree / str(header).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(header, target)
        return [d for d in directories if (tree / str(d).lstrip("/")).is_dir()]

    def _search_list(self) -> list[Path]:
        """Return the directories of system headers without the compiler's own, which ROOT's interpreter brings."""
        match = _SEARCH_LIST.search(_run([self._program, "-xc++", "-E", "-v", "-o", "/dev/null", "/dev/null"]))
        if match is None:
            raise PublishError(f"{self._program} does not say where its headers are")
        found = [Path(line.strip()).resolve() for line in match[1].splitlines()]
        return [d for d in dict.fromkeys(found) if d.is_dir() and "gcc" not in d.parts and "clang" not in d.parts]

    def _included(self, directories: Sequence[Path]) -> list[Path]:
        """Return every header that the standard ones include, and everything that C++'s own directories hold."""
        cxx = [d for d in directories if "c++" in d.parts]
        names = sorted(p.name for p in cxx[0].iterdir() if p.is_file()) if cxx else []
        lines = [f"#if __has_include(<{name}>)\n#include <{name}>\n#endif\n" for name in (*names, *POSIX_HEADERS)]
        listing = _run([self._program, f"-std={STANDARD}", "-M", "-w", "-xc++", "-"], "".join(lines))
        included = {Path(word).resolve() for word in listing.partition(":")[2].replace("\\\n", " ").split()}
        own = {path for d in cxx for path in d.rglob("*") if path.is_file()}
        return sorted(p for p in included | own if any(p.is_relative_to(d) for d in directories))


def _run(argv: Sequence[str], text: str = "") -> str:
    try:
        result = subprocess.run(
            argv, check=False, input=text, capture_output=True, text=True, timeout=COMPILER_TIMEOUT_S,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PublishError(f"{argv[0]} failed: {error}") from error
    if result.returncode:
        raise PublishError(f"{' '.join(argv)} failed: {result.stderr[-500:]}")
    return result.stdout or result.stderr
