"""Making a tree that was built for one prefix independent of it, as far as that can be done before it is installed.

ELF search paths and symlinks become relative, scripts find their interpreter on PATH, programs with a loader of
their own get a field that the installer fills, and text files are written down in the record of
`jobagent.job.relocation`.  What stays tied to the prefix is reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from jobagent.central.packaging import elf
from jobagent.errors import PublishError
from jobagent.job import relocation
from jobagent.job.relocation import Record

_TEXT_PROBE_BYTES = 8192
_SHEBANG = re.compile(rb"#!\s*(\S+)[ \t]*([^\n]*)\n")

Report = Callable[[str], None]


def make_relocatable(tree: Path, prefix: str, report: Report) -> Record | None:
    """Free `tree` of `prefix` and write its relocation record; returns it, or None where none is needed.

    `report` gets a line for whatever cannot be made independent.

    Raises:
        PublishError: The prefix is no absolute path with at least two parts.
    """
    prefix = prefix.rstrip("/")
    if not relocation.is_prefix(prefix):
        raise PublishError(f"build prefix {prefix!r} is not an absolute path of two parts or more", remedy="--prefix")
    (tree / relocation.RECORD).unlink(missing_ok=True)
    texts: list[str] = []
    loaders: list[tuple[str, str]] = []
    pattern = relocation.occurrences(prefix)
    for path in _members(tree):
        relative = path.relative_to(tree).as_posix()
        if path.is_symlink():
            _relative_link(tree, path, prefix)
        elif elf.is_elf(path):
            loaders += _independent_object(tree, path, prefix, report)
        elif (data := _mention(path, prefix)) is None:
            continue
        elif b"\0" in data[:_TEXT_PROBE_BYTES] or len(data) > relocation.MAX_TEXT_BYTES:
            report(f"{relative} names {prefix} and is no text: it may not work elsewhere")
        else:
            data = _with_shebang(path, data, prefix)
            if pattern.search(data):
                texts.append(relative)
    record = Record(prefix, tuple(sorted(texts)), tuple(sorted(loaders)))
    return record if write_record(tree, record) else None


def write_record(tree: Path, record: Record) -> bool:
    """Write the record into the tree; False where there is nothing to record."""
    if not record.texts and not record.loaders:
        return False
    target = tree / relocation.RECORD
    target.parent.mkdir(exist_ok=True)
    try:
        target.write_bytes(record.encode())
    except ValueError as error:
        raise PublishError(f"{tree} cannot be relocated: {error}") from error
    return True


def _members(tree: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(tree):
        names.sort()
        links = [name for name in names if Path(directory, name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(directory, name)
            if path.is_symlink() or path.is_file():
                yield path


def _mention(path: Path, prefix: str) -> bytes | None:
    """Return the content of a file that names the prefix."""
    data = path.read_bytes()
    return data if os.fsencode(prefix) in data else None


def _relative_link(tree: Path, path: Path, prefix: str) -> None:
    target = os.readlink(path)
    if target == prefix or target.startswith(prefix + "/"):
        inside = tree / target[len(prefix) :].lstrip("/")
        path.unlink()
        path.symlink_to(os.path.relpath(inside, path.parent))


def _independent_object(tree: Path, path: Path, prefix: str, report: Report) -> list[tuple[str, str]]:
    relative = path.relative_to(tree).as_posix()
    entries = elf.runpath(path)
    changed = [_relative_entry(tree, path, entry, prefix) for entry in entries]
    if changed != entries:
        elf.set_runpath(path, changed)
    for entry in changed:
        if entry.startswith("/"):
            report(f"{relative} searches {entry} for libraries, which is outside the package")
    loader = elf.interpreter(path)
    if not loader.startswith(prefix + "/"):
        return []
    elf.set_interpreter(path, relocation.LOADER_PLACEHOLDER)
    return [(loader[len(prefix) + 1 :], relative)]


def _relative_entry(tree: Path, path: Path, entry: str, prefix: str) -> str:
    if entry != prefix and not entry.startswith(prefix + "/"):
        return entry
    inside = tree / entry[len(prefix) :].lstrip("/")
    return f"$ORIGIN/{os.path.relpath(inside, path.parent)}"


def _with_shebang(path: Path, data: bytes, prefix: str) -> bytes:
    """Let a script whose interpreter is in the package find it on PATH: a kernel reads 127 bytes of that line."""
    match = _SHEBANG.match(data)
    if match is None or not match[1].startswith(os.fsencode(prefix) + b"/"):
        return data
    name, options = match[1].rpartition(b"/")[2], match[2].strip()
    line = b"#!/usr/bin/env -S " + name + b" " + options if options else b"#!/usr/bin/env " + name
    data = line + b"\n" + data[match.end() :]
    path.write_bytes(data)
    return data
