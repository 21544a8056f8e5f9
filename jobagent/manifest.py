"""The manifest of an installed tree: its canonical form, its digest, and the comparison with a tree on disk.

Form: one JSON object a line with sorted keys and no blanks, lines ordered by the bytes of the path, each ended by a
newline, UTF-8.  Keys: `p` path, `k` kind (`f`, `d`, `l`), `m` mode in octal (files), `s` size in bytes and `h`
sha256 (files), `t` target (symlinks).  Two trees with equal manifests are equal for every payload: times and owners
are not part of it.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jobagent.contracts import ManifestEntry
from jobagent.errors import HostileArchive
from jobagent.model import Blob, Tree

MAX_PATH_BYTES = 3500  # PATH_MAX is 4096, and the cache's own prefix comes before it
MAX_NAME_BYTES = 255  # NAME_MAX of every Linux file system
MAX_SYMLINK_HOPS = 40  # path_resolution(7)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HASH_THREADS = min(4, os.cpu_count() or 1)
_LARGE_FILE_BYTES = 1 << 20  # below this, handing a file to another thread costs more than hashing it


def encode(entries: Iterable[ManifestEntry]) -> bytes:
    """Return the canonical form."""
    lines = []
    for entry in sorted(entries, key=lambda e: os.fsencode(e.path)):
        item: dict[str, str | int] = {"p": entry.path, "k": entry.kind}
        if entry.kind == "f":
            item |= {"m": f"{entry.mode:o}", "s": entry.size_bytes, "h": entry.sha256}
        elif entry.kind == "l":
            item["t"] = entry.target
        lines.append(json.dumps(item, sort_keys=True, separators=(",", ":")))
    return "".join(line + "\n" for line in lines).encode()


def digest(entries: Iterable[ManifestEntry]) -> Blob:
    """Return the signed reference of a manifest."""
    data = encode(entries)
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def tree_of(entries: Sequence[ManifestEntry]) -> Tree:
    """Return what is signed about a tree: its manifest, the bytes of its files, and the number of all its members."""
    return Tree(digest(entries), sum(entry.size_bytes for entry in entries), len(entries))


def decode(data: bytes) -> tuple[ManifestEntry, ...]:
    """Parse the canonical form; raises HostileArchive where it is anything else."""
    entries = []
    try:
        for line in data.decode("ascii").removesuffix("\n").split("\n") if data else ():
            item = json.loads(line)
            kind = item["k"]
            entry = ManifestEntry(
                path=checked_path(item["p"]),
                kind=kind,
                mode={"f": int(item.get("m", "0"), 8), "d": 0o755}.get(kind, 0),
                size_bytes=int(item.get("s", 0)),
                sha256=str(item.get("h", "")),
                target=str(item.get("t", "")),
            )
            if not _is_well_formed(entry):
                raise ValueError(line[:100])
            entries.append(entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HostileArchive(f"manifest is malformed: {error!r}") from error
    if encode(entries) != data or len({entry.path for entry in entries}) != len(entries):
        raise HostileArchive("manifest is not in canonical form")
    return tuple(entries)


def checked_path(path: str) -> str:
    """Return `path`, or raise HostileArchive where it is not a plain relative path."""
    raw = os.fsencode(path)
    parts = raw.split(b"/")
    if (
        b"\0" in raw
        or len(raw) > MAX_PATH_BYTES
        or not {b"", b".", b".."}.isdisjoint(parts)
        or any(len(part) > MAX_NAME_BYTES for part in parts)
    ):
        raise HostileArchive(f"path {path[:200]!r} is not a plain relative path")
    return path


def check(entries: Iterable[ManifestEntry]) -> None:
    """Raise HostileArchive where the members cannot make a tree that stays within itself.

    Every path is plain and there once, every parent is a directory, and no symlink leads out of the tree, not even
    by way of others.
    """
    kinds: dict[str, str] = {"": "d"}
    links: dict[str, str] = {}
    for entry in entries:
        if checked_path(entry.path) in kinds:
            raise HostileArchive(f"{entry.path[:200]!r} is there twice")
        kinds[entry.path] = entry.kind
        if entry.kind == "l":
            links[entry.path] = entry.target
    for path in kinds:
        parent = path.rpartition("/")[0]
        if kinds.get(parent) != "d":
            raise HostileArchive(f"{path[:200]!r} lies in {parent[:200]!r}, which is no directory")
    for path, target in links.items():
        problem = _link_problem(path, target, links)
        if problem:
            raise HostileArchive(f"symlink {path[:200]!r} to {target[:200]!r} {problem}")


def scan(tree: Path) -> tuple[ManifestEntry, ...]:
    """Return the manifest of what is on disk below `tree` (not including `tree` itself), files hashed.

    What a tree may not hold (devices, sockets, set-id bits) shows as an entry that no manifest has.
    """
    entries: list[ManifestEntry] = []
    large: list[tuple[ManifestEntry, concurrent.futures.Future[str]]] = []
    with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as pool:
        for entry in _walk(tree):
            if entry.kind == "f" and entry.size_bytes >= _LARGE_FILE_BYTES:
                large.append((entry, pool.submit(hash_file, tree / entry.path)))
            elif entry.kind == "f":
                entries.append(replace(entry, sha256=hash_file(tree / entry.path)))
            else:
                entries.append(entry)
        entries += [replace(entry, sha256=future.result()) for entry, future in large]
    return tuple(sorted(entries, key=lambda e: os.fsencode(e.path)))


def difference(expected: Sequence[ManifestEntry], tree: Path) -> str:
    """Compare a tree with its manifest; return the first difference in words, or an empty string."""
    found = {entry.path: entry for entry in scan(tree)}
    for entry in expected:
        actual = found.pop(entry.path, None)
        if actual is None:
            return f"{entry.path} is missing"
        if actual != entry:
            return f"{entry.path} was changed"
    return f"{next(iter(found))} was added" if found else ""


def hash_file(path: Path) -> str:
    """Return the sha256 of a file as lower-case hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _link_problem(path: str, target: str, links: Mapping[str, str]) -> str:
    """Follow a symlink through the tree as the kernel would; what does not exist counts as a directory."""
    place = path.split("/")[:-1]
    pending: list[str] = []
    for _ in range(MAX_SYMLINK_HOPS):
        if not target or "\0" in target or len(os.fsencode(target)) > MAX_PATH_BYTES:
            return "is malformed"
        if target.startswith("/"):
            return "is absolute"
        if len(pending) > MAX_PATH_BYTES:
            break
        pending.extend(reversed(target.split("/")))
        target = ""
        while pending and not target:
            part = pending.pop()
            if part == ".." and not place:
                return "leaves the tree"
            if part == "..":
                place.pop()
            elif part not in {"", "."}:
                place.append(part)
                target = links.get("/".join(place), "")
        if not target:
            return ""
        place.pop()
    return "is followed for too long"


def _is_well_formed(entry: ManifestEntry) -> bool:
    if entry.kind == "f":
        return entry.mode in {0o644, 0o755} and entry.size_bytes >= 0 and bool(_SHA256.fullmatch(entry.sha256))
    return entry.kind == "d" or (entry.kind == "l" and bool(entry.target))


def _walk(tree: Path) -> Iterable[ManifestEntry]:
    pending = [""]
    while pending:
        relative = pending.pop()
        with os.scandir(tree / relative) as items:
            for item in items:
                entry = _entry(item, f"{relative}/{item.name}" if relative else item.name)
                if entry.kind == "d":
                    pending.append(entry.path)
                yield entry


def _entry(item: os.DirEntry[str], path: str) -> ManifestEntry:
    status = item.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        return ManifestEntry(path, "l", target=os.readlink(item.path))
    if stat.S_ISDIR(status.st_mode):
        return ManifestEntry(path, "d", 0o755)
    if not stat.S_ISREG(status.st_mode):
        return ManifestEntry(path, "?")
    mode = 0o755 if status.st_mode & 0o100 else 0o644
    return ManifestEntry(path, "f", mode | status.st_mode & (stat.S_ISUID | stat.S_ISGID), status.st_size)
