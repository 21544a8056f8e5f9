"""What pilots bring to worker nodes: the runtime archive, the pilot script, and the agent as a package.

A bare node has tar and gzip, and perhaps no better decompressor.  So the archive is a gzip-compressed tar of few
things: a loader with libc, an `xz` that runs on them, and the tree as `tree.tar.xz`, which that `xz` unpacks.

    SHA256SUMS          every regular file of the unpacked tree, as sha256sum(1) reads it
    unpack              shell script: `sh unpack DIRECTORY` turns the directory into the tree
    lib/                loader, libc and liblzma; part of the tree
    tree.tar.xz         the rest of the tree

Two builds from the same inputs are equal byte by byte.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jobagent.central.landing import bundletree
from jobagent.central.landing.pilotscript import Runtime
from jobagent.errors import ConfigurationError

SUMS = "SHA256SUMS"
_BLOCK_BYTES = 8 << 20  # of 54 MB; costs 6 % in size
_BRANCH_FILTERS = {"x86_64": "--x86"}  # makes machine code compress better
_COMPRESS_TIMEOUT_S = 900.0

_UNPACK = """\
# sh unpack DIRECTORY: turn it into the tree.  The pipe's status is tar's, which fails on half an archive.
cd "$1" || exit 1
./lib/LOADER --inhibit-cache --library-path ./lib ./xz -dc -T0 tree.tar.xz | tar -xof - || exit 1
rm -f tree.tar.xz xz unpack
"""


@dataclass(frozen=True, slots=True)
class Built:
    """A runtime archive and what the pilot script must know of it, and the tree of the agent's own package."""

    archive: Path
    runtime: Runtime
    agent: Path


def build(directory: Path, *, effort: int = 9) -> Built:
    """Build runtime archive and agent in `directory`; `effort` is that of xz(1), 9 meaning extreme.

    Raises:
        ConfigurationError: A tool or a distribution is missing here.
    """
    directory.mkdir(parents=True, exist_ok=True)
    agent = directory / "agent"
    shutil.rmtree(agent, ignore_errors=True)
    build_agent(agent)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=directory) as work:
        tree = Path(work) / "tree"
        tree.mkdir()
        bundletree.assemble(tree, agent / "site")
        decompressor = _decompressor(tree)
        files = sorted(path for path in tree.rglob("*") if path.is_file())
        sums = "".join(f"{_sha256(path)}  {path.relative_to(tree)}\n" for path in files).encode()
        tree_bytes = sum(path.stat().st_size for path in files)
        archive = directory / "runtime.tar.gz"
        _pack(tree, archive, decompressor, sums, effort)
    runtime = Runtime(
        sha256=_sha256(archive),
        size_bytes=archive.stat().st_size,
        machine=platform.machine(),
        file_count=len(files),
        sums_sha256=hashlib.sha256(sums).hexdigest(),
        tree_bytes=tree_bytes,
    )
    return Built(archive, runtime, agent)


def build_agent(directory: Path) -> None:
    """Put the agent alone into the empty `directory`, as the tree of a package: it may be newer than the pilots' own.

    It runs on the pilot's interpreter: `JOBAGENT_PYTHON` names that, `bin/jobagent` starts it.
    """
    site = directory / "site"
    site.mkdir(parents=True)
    bundletree.copy_agent(site)
    bundletree.compile_sources(site, is_sourceless=False)
    program = directory / "bin" / "jobagent"
    program.parent.mkdir()
    program.write_text(_AGENT)
    program.chmod(0o755)


_AGENT = """\
#!/bin/sh
# Runs this agent on the interpreter that $JOBAGENT_PYTHON names.
case $0 in
    /*) root=${0%/bin/*} ;;
    *) root=$(cd "$(dirname "$0")/.." && pwd -P) ;;
esac
exec "${JOBAGENT_PYTHON:?}" -I -c '
import sys
sys.path.insert(0, sys.argv.pop(1))
from jobagent.cli.main import entry
entry()' "$root/site" "$@"
"""


def _decompressor(tree: Path) -> Path:
    """Return an `xz` of this machine whose libraries the tree has."""
    program = shutil.which("xz")
    if program is None:
        raise ConfigurationError("xz is not installed here, the bundle needs it", remedy="apt-get install xz-utils")
    missing = [name for name in bundletree.libraries_of(Path(program)) if not (tree / "lib" / name).exists()]
    if missing:
        raise ConfigurationError(f"{program} needs {', '.join(missing)}, which Python here does not bring")
    return Path(program)


def _pack(tree: Path, archive: Path, decompressor: Path, sums: bytes, effort: int) -> None:
    first = [f"lib/{name}" for name in bundletree.libraries_of(decompressor)]
    loader = next(name for name in first if "/ld-linux" in name)
    unpack = _UNPACK.replace("LOADER", Path(loader).name)
    inner = io.BytesIO()
    _write_tar(inner, tree, [p for p in _members(tree) if p not in first])
    dense = _compressed(inner.getvalue(), decompressor, effort)
    with open(archive, "wb") as stream, gzip.GzipFile("", "wb", max(1, effort), stream, mtime=0) as packed:

        def add_rest(tar: tarfile.TarFile) -> None:
            for name, data, mode in (
                (SUMS, sums, 0o644),
                ("unpack", unpack.encode(), 0o644),
                ("xz", decompressor.read_bytes(), 0o755),
                ("tree.tar.xz", dense, 0o644),
            ):
                tar.addfile(_member(name, len(data), mode), io.BytesIO(data))

        _write_tar(packed, tree, ["lib", *first], add_rest)


def _compressed(data: bytes, program: Path, effort: int) -> bytes:
    """Compress in separate blocks, so that nodes unpack on all their cores; how many are here does not show."""
    branch = [_BRANCH_FILTERS[platform.machine()]] if platform.machine() in _BRANCH_FILTERS else []
    method = f"--lzma2=preset={effort}{'e' if effort == 9 else ''}"
    argv = [str(program), "--compress", "--stdout", "--threads=0", f"--block-size={_BLOCK_BYTES}", *branch, method]
    try:
        done = subprocess.run(argv, input=data, capture_output=True, timeout=_COMPRESS_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"cannot run {program}: {error}") from error
    if done.returncode:
        raise ConfigurationError(f"{program} failed: {done.stderr.decode(errors='replace')[-300:]}")
    return done.stdout


def _members(tree: Path) -> list[str]:
    """All paths of the tree, the machine code together: it compresses better so."""
    paths = [str(path.relative_to(tree)) for path in tree.rglob("*")]
    return sorted(paths, key=lambda p: (not (tree / p).is_dir(), p.endswith(".pyc"), ".so" not in p, p))


def _write_tar(
    stream: io.BufferedIOBase | gzip.GzipFile,
    tree: Path,
    names: Iterable[str],
    finish: Callable[[tarfile.TarFile], None] = lambda tar: None,
) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in names:
            path = tree / name
            if path.is_dir():
                directory = _member(name, 0, 0o755)
                directory.type = tarfile.DIRTYPE
                tar.addfile(directory)
            else:
                with open(path, "rb") as content:
                    tar.addfile(_member(name, path.stat().st_size, path.stat().st_mode & 0o777), content)
        finish(tar)


def _member(name: str, size_bytes: int, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)  # owner root, time 0: nothing of this machine
    member.size, member.mode = size_bytes, mode
    return member


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
