"""`bench.unpack`: packing and unpacking, against `tar` and `zstd` on the same archive in the same run.

- `unpack_vs_tar`: time of `tar --zstd -x` over ours, which also hashes every file; median of alternating pairs.
- `pack_mb_s`: bytes of the tree packed per second, hashing and compression at the default level included.

The tree is real software: this Python and all that is installed beside it; with `--full` ROOT's wheel, from pip.
Trees are removed after the last measurement: ext4 avoids inodes that were freed in the last seconds, which made
every create ten times as slow.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import leave_nothing_when_terminated
from jobagent.central.packaging import wheelfile
from jobagent.central.packaging.pack import FORMAT, Packed, pack
from jobagent.model import Archive, Package, PackageId
from jobagent_archives.unpacking import TarUnpacker

WHEEL = "root==0.1a12"


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.unpack", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--full", action="store_true", help=f"the tree of {WHEEL}, more repeats")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="the tree of this wheel")
    options = parser.parse_args()
    leave_nothing_when_terminated()
    with tempfile.TemporaryDirectory(prefix="jobagent-bench-") as directory:
        base = Path(directory)
        wheel = options.wheel or (download(base) if options.full else None)
        tree = base / "tree"
        if wheel:
            wheelfile.unpack(wheel, tree)
        else:
            copy_installation(tree)
        figures = measure(base, tree, repeats=9 if options.full else 5)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def download(base: Path) -> Path:
    """Have pip fetch the wheel."""
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*argv, "--dest", str(base), WHEEL], check=True, timeout=1800)
    return next(base.glob("*.whl"))


def copy_installation(tree: Path) -> None:
    """Copy this Python's library and everything installed beside it; links would lead out of the tree."""
    for name in ("stdlib", "platlib"):
        shutil.copytree(
            sysconfig.get_path(name), tree / name, symlinks=False, ignore_dangling_symlinks=True,
            ignore=shutil.ignore_patterns("site-packages", "*.a") if name == "stdlib" else None,
        )  # fmt: skip


def measure(base: Path, tree: Path, *, repeats: int) -> dict[str, Any]:
    """Return all figures."""
    archive = base / f"archive.{FORMAT}"
    start = time.perf_counter()
    packed = pack(tree, archive)
    pack_s = time.perf_counter() - start
    size_mb = packed.tree.size_bytes / 1e6
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(repeats):
        pair = [(theirs, unpack_with_tar), (ours, unpack_with_agent)]
        for times, unpack in pair if number % 2 else reversed(pair):
            into = base / f"{unpack.__name__}-{number}"
            into.mkdir()
            os.sync()  # what was written before is not to be paid for here
            start = time.perf_counter()
            unpack(archive, packed, into)
            times.append(time.perf_counter() - start)
    ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
    return {
        "unpack_vs_tar": round(statistics.median(ratios), 2),
        "unpack_vs_tar_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "unpack_s": round(statistics.median(ours), 2),
        "tar_s": round(statistics.median(theirs), 2),
        "unpack_mb_s": round(size_mb / statistics.median(ours)),
        "pack_mb_s": round(size_mb / pack_s),
        "pack_s": round(pack_s, 1),
        "tree_mb": round(size_mb, 1),
        "tree_members": packed.tree.file_count,
        "archive_mb": round(packed.archive.size_bytes / 1e6, 1),
        "repeats": repeats,
        "cores": os.cpu_count(),
    }


def unpack_with_tar(archive: Path, packed: Packed, into: Path) -> None:
    """The peer: no hashing, no checks."""
    subprocess.run(["tar", "--zstd", "-xf", archive, "-C", into], check=True, timeout=600)


def unpack_with_agent(archive: Path, packed: Packed, into: Path) -> None:
    """Ours: checked against the signed limits, every file hashed."""
    described = Archive(archive.name, FORMAT, packed.archive.sha256, packed.archive.size_bytes, "", "0" * 64)
    package = Package(PackageId("bench", "Tree", "1"), "any", described, packed.tree, 0)
    TarUnpacker().unpack(archive, package, into)


if __name__ == "__main__":
    sys.exit(main())
