"""Programs that run from any directory: each names its tree's own dynamic loader in a padded ELF field.

The kernel takes the loader's path from a program's PT_INTERP segment and knows no relative one, so a tree that has
moved must have it rewritten.  The tree's maker reserves `FIELD_BYTES` in every program; `relocate` fills the field in
place.  Only the standard library is used: pilots run it on bare worker nodes, as
`python -m jobagent.condor.pilots.relocation TREE`.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from jobagent.errors import ScratchUnusable

FIELD_BYTES = 240  # with the closing NUL; PATH_MAX would be allowed, but longer roots are not seen on worker nodes
PROGRAM_DIRECTORIES = ("bin", "sbin", "libexec")

_MAGIC = b"\x7fELF\x02\x01"  # 64 bit, little endian: x86-64 and aarch64
_PT_INTERP = 3


def relocate(tree: Path, *, home: Path | None = None) -> int:
    """Write the path of `tree`'s loader into every program below it and return the number of programs.

    The programs must not run meanwhile.  `home` is where the tree will be renamed to, if it will be.

    Raises:
        ScratchUnusable: The path is too long for the reserved field, or the tree has no loader.
    """
    tree = tree.resolve()
    loaders = sorted(tree.glob("lib/ld-linux*.so.*"))
    if not loaders:
        raise ScratchUnusable(f"{tree} holds no lib/ld-linux*.so.*", remedy="unpack the tree again")
    loader = os.fsencode((home or tree) / "lib" / loaders[0].name)
    if len(loader) >= FIELD_BYTES:
        raise ScratchUnusable(
            f"{tree} is too deep: the loader's path has {len(loader)} bytes, {FIELD_BYTES - 1} are reserved",
            remedy="use a shorter directory",
        )
    programs = list(elf_programs(tree))
    for program in programs:
        _write_interpreter(program, loader)
    return len(programs)


def elf_programs(tree: Path) -> Iterator[Path]:
    """Yield every dynamically linked program of the tree; scripts and static programs are left out."""
    for directory in PROGRAM_DIRECTORIES:
        for path in sorted((tree / directory).glob("*")):
            if path.is_file() and not path.is_symlink() and interpreter_field(path) is not None:
                yield path


def interpreter_field(program: Path) -> tuple[int, int] | None:
    """Return offset and size in bytes of the PT_INTERP segment, or None for anything that has none."""
    with open(program, "rb") as stream:
        header = stream.read(64)
        if len(header) < 64 or not header.startswith(_MAGIC):
            return None
        (table,) = struct.unpack_from("<Q", header, 32)
        entry_size, entries = struct.unpack_from("<HH", header, 54)
        stream.seek(table)
        segments = stream.read(entry_size * entries)
    for start in range(0, len(segments), entry_size):
        (kind,) = struct.unpack_from("<I", segments, start)
        if kind == _PT_INTERP:
            (offset,) = struct.unpack_from("<Q", segments, start + 8)
            (size,) = struct.unpack_from("<Q", segments, start + 32)
            return offset, size
    return None


def _write_interpreter(program: Path, loader: bytes) -> None:
    field = interpreter_field(program)
    if field is None or field[1] < len(loader) + 1:
        raise ScratchUnusable(f"{program} has no room for the loader's path {os.fsdecode(loader)}")
    offset, size = field
    with open(program, "r+b") as stream:
        stream.seek(offset)
        stream.write(loader.ljust(size, b"\0"))


if __name__ == "__main__":
    relocate(Path(sys.argv[1]))
