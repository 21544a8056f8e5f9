"""Torrents of archives: made reproducibly, and checked as hostile input.

A package's torrent is hybrid v1+v2 with one file, so that any standard client can take part: BEP 3 and BEP 52.
The same bytes under the same name always give the same torrent: no dates, no trackers, no web seeds are written,
and those in a torrent from elsewhere are ignored.  Knows nothing of catalogues and swarms.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobagent import bencode
from jobagent.errors import HostileArchive, JobError

BLOCK_BYTES = 16384  # BEP 52: leaf of the merkle tree
# libtorrent 2.1 asks honest peers for the hashes of a damaged piece's blocks; where a piece is one block it takes
# their answer for invalid and drops them, so that one corrupt peer would cost a node all others
MIN_PIECE_BYTES = 2 * BLOCK_BYTES
MAX_PIECE_BYTES = 16 << 20
MAX_PIECES = 1000  # 400 to 1,000 pieces served best: fewer make copies, more cost time
MAX_CHECKED_PIECES = 100_000
MAX_TORRENT_BYTES = 6 << 20  # 100,000 pieces need 52 bytes each
MAX_DEPTH = 10
MAX_NAME_BYTES = 255  # NAME_MAX
_SAFE_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+")
_OWN_KEYS = frozenset({b"info", b"piece layers"})


@dataclass(frozen=True, slots=True)
class Torrent:
    """A torrent file and what the catalogue signs of it.  Infohashes are lower-case hex."""

    data: bytes
    infohash_v1: str
    infohash_v2: str
    piece_size: int


@dataclass(frozen=True, slots=True)
class TorrentSummary:
    """What a safe torrent describes; an infohash is empty where the torrent has not that version.

    `ignored` names the parts that are never used: trackers, web seeds, comments.
    """

    file_name: str
    size_bytes: int
    piece_size: int
    pieces: int
    infohash_v1: str
    infohash_v2: str
    ignored: tuple[str, ...] = ()


def piece_size_for(size_bytes: int) -> int:
    """Return the smallest power of two that cuts the file into at most 1,000 pieces, from 32 KiB to 16 MiB."""
    size = MIN_PIECE_BYTES
    while size < MAX_PIECE_BYTES and size_bytes > size * MAX_PIECES:
        size *= 2
    return size


def create(archive: Path, file_name: str) -> Torrent:
    """Make the hybrid torrent of `archive` under the name `file_name`.

    Raises:
        JobError: The name is not a plain file name, or the archive is empty or changes while it is read.
        OSError: The archive cannot be read.
    """
    if not _is_safe_name(file_name):
        raise JobError(f"{file_name!r} is not a plain file name")
    size = archive.stat().st_size
    if not size:
        raise JobError(f"{archive} is empty")
    piece_size = piece_size_for(size)
    pieces: list[bytes] = []
    layer: list[bytes] = []
    count = 0
    for piece in _pieces(archive, piece_size):
        count += len(piece)
        pieces.append(hashlib.sha1(piece, usedforsecurity=False).digest())  # BEP 3 fixes the algorithm
        leaves = [_sha256(piece[i : i + BLOCK_BYTES]) for i in range(0, len(piece), BLOCK_BYTES)]
        width = piece_size // BLOCK_BYTES if size > piece_size else _power_of_two(len(leaves))
        layer.append(_merkle_root(leaves, width, bytes(32)))
    if count != size:
        raise JobError(f"{archive} changed while it was read")
    root = _root_of_layer(layer, piece_size)
    info: dict[bytes, bencode.Encodable] = {
        b"file tree": {file_name.encode(): {b"": {b"length": size, b"pieces root": root}}},
        b"length": size,
        b"meta version": 2,
        b"name": file_name,
        b"piece length": piece_size,
        b"pieces": b"".join(pieces),
    }
    layers: dict[bytes, bytes] = {root: b"".join(layer)} if len(layer) > 1 else {}
    encoded = bencode.encode(info)
    data = b"d4:info" + encoded + b"12:piece layers" + bencode.encode(layers) + b"e"
    return Torrent(data, hashlib.sha1(encoded, usedforsecurity=False).hexdigest(), _sha256(encoded).hex(), piece_size)


def legacy(data: bytes, announce: str = "") -> Torrent:
    """Return the v1-only torrent of the same file as the hybrid torrent `data`, for clients that know only BEP 3.

    Widespread releases of aria2 (1.36) and transmission (3.00) cannot read the v2 part of a hybrid torrent.  The
    result follows from `data` alone, so whoever trusts the one trusts the other; it is a swarm of its own.

    Raises:
        HostileArchive: `data` is not a torrent of one plain file.
    """
    check(data)
    top = bencode.decode(data, max_bytes=MAX_TORRENT_BYTES, max_depth=MAX_DEPTH)
    info = top[b"info"] if isinstance(top, dict) else None
    assert isinstance(info, dict)  # checked
    old = {key: value for key, value in info.items() if key not in (b"file tree", b"meta version")}
    encoded = bencode.encode(old)
    whole: dict[bytes, bencode.Encodable] = {b"info": old}
    if announce:
        whole[b"announce"] = announce
    piece_size = int(old[b"piece length"])  # type: ignore[arg-type]
    infohash = hashlib.sha1(encoded, usedforsecurity=False).hexdigest()
    return Torrent(bencode.encode(whole), infohash, "", piece_size)


def check(data: bytes) -> TorrentSummary:
    """Return what `data` describes, in bounded time and memory.

    Raises:
        HostileArchive: It is malformed, passes a limit, holds anything but one plain file, or contradicts itself.
    """
    try:
        top = bencode.decode(data, max_bytes=MAX_TORRENT_BYTES, max_depth=MAX_DEPTH)
    except ValueError as error:
        raise HostileArchive(f"torrent is malformed: {error}") from error
    info = top.get(b"info") if isinstance(top, dict) else None
    if not isinstance(top, dict) or not isinstance(info, dict):
        raise HostileArchive("torrent has no info dictionary")
    version = info.get(b"meta version", 1)
    if version not in (1, 2):
        raise HostileArchive(f"torrent has meta version {version!r}, known are 1 and 2")
    name = _checked_name(info.get(b"name"))
    piece_size = _checked_piece_size(info.get(b"piece length"), version)
    size: int | None = None
    if version == 2:
        size, root = _v2_file(info.get(b"file tree"), name)
        _check_layers(top.get(b"piece layers"), root, size, piece_size)
    is_v1 = b"pieces" in info or b"length" in info or b"files" in info or version == 1
    if is_v1:
        v1_size = _v1_file(info, piece_size)
        if size not in (None, v1_size):
            raise HostileArchive(f"torrent gives two sizes for its file, {v1_size} and {size} bytes")
        size = v1_size
    assert size is not None
    encoded = bencode.encode(info)
    ignored = sorted(k.decode("ascii", "replace")[:40] for k in top.keys() - _OWN_KEYS)
    return TorrentSummary(
        file_name=name,
        size_bytes=size,
        piece_size=piece_size,
        pieces=-(-size // piece_size),
        infohash_v1=hashlib.sha1(encoded, usedforsecurity=False).hexdigest() if is_v1 else "",
        infohash_v2=_sha256(encoded).hex() if version == 2 else "",
        ignored=tuple(ignored),
    )


def _checked_name(value: object) -> str:
    try:
        name = value.decode() if isinstance(value, bytes) else ""
    except UnicodeDecodeError:
        name = ""
    if not _is_safe_name(name):
        raise HostileArchive(f"torrent's file name {value!r:.100} is not a plain file name")
    return name


def _checked_piece_size(value: object, version: int) -> int:
    if not isinstance(value, int) or not 0 < value <= MAX_PIECE_BYTES:
        raise HostileArchive(f"torrent's piece length {value!r:.40} is not between 1 and {MAX_PIECE_BYTES}")
    if version == 2 and (value < BLOCK_BYTES or value & (value - 1)):
        raise HostileArchive(f"torrent's piece length {value} is not a power of two from {BLOCK_BYTES}")
    return value


def _checked_size(value: object, piece_size: int) -> int:
    if not isinstance(value, int) or value <= 0:
        raise HostileArchive(f"torrent's file has length {value!r:.40}")
    if value > piece_size * MAX_CHECKED_PIECES:
        raise HostileArchive(f"torrent has more than {MAX_CHECKED_PIECES} pieces")
    return value


def _v1_file(info: dict[bytes, bencode.Value], piece_size: int) -> int:
    if b"files" in info:
        raise HostileArchive("torrent holds a directory, one file is accepted")
    _refuse_attributes(info)
    size = _checked_size(info.get(b"length"), piece_size)
    pieces = info.get(b"pieces")
    expected = -(-size // piece_size) * 20
    if not isinstance(pieces, bytes) or len(pieces) != expected:
        raise HostileArchive(f"torrent's v1 piece hashes are not {expected} bytes")
    return size


def _v2_file(tree: object, name: str) -> tuple[int, bytes]:
    if not isinstance(tree, dict) or len(tree) != 1:
        raise HostileArchive("torrent's file tree does not hold exactly one file")
    ((key, node),) = tree.items()
    if key != name.encode():
        raise HostileArchive(f"torrent's file {key!r:.100} differs from its name {name!r}")
    leaf = node.get(b"") if isinstance(node, dict) and len(node) == 1 else None
    if not isinstance(leaf, dict):
        raise HostileArchive("torrent holds a directory, one file is accepted")
    _refuse_attributes(leaf)
    size, root = leaf.get(b"length"), leaf.get(b"pieces root")
    if not isinstance(size, int) or size <= 0:
        raise HostileArchive(f"torrent's file has length {size!r:.40}")
    if not isinstance(root, bytes) or len(root) != 32 or root == bytes(32):
        raise HostileArchive("torrent's file has no root hash")
    return size, root


def _refuse_attributes(node: dict[bytes, bencode.Value]) -> None:
    """Refuse pad files, symlinks, and executables (BEP 47): an archive has no attributes."""
    if b"symlink path" in node:
        raise HostileArchive("torrent holds a symlink")
    if node.get(b"attr", b""):
        raise HostileArchive(f"torrent's file has attributes {node[b'attr']!r:.40}")


def _check_layers(layers: object, root: bytes, size: int, piece_size: int) -> None:
    _checked_size(size, piece_size)
    if size <= piece_size:
        return
    layer = layers.get(root) if isinstance(layers, dict) else None
    count = -(-size // piece_size)
    if not isinstance(layer, bytes) or len(layer) != 32 * count:
        raise HostileArchive(f"torrent's piece layer is not {32 * count} bytes")
    hashes = [layer[i : i + 32] for i in range(0, len(layer), 32)]
    if _root_of_layer(hashes, piece_size) != root:
        raise HostileArchive("torrent's piece layer does not match its root hash")


def _pieces(archive: Path, piece_size: int) -> Iterator[bytes]:
    descriptor = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as stream:
        while piece := stream.read(piece_size):
            while len(piece) < piece_size and (more := stream.read(piece_size - len(piece))):
                piece += more
            yield piece


def _root_of_layer(layer: list[bytes], piece_size: int) -> bytes:
    if len(layer) == 1:
        return layer[0]
    padding = _merkle_root([], piece_size // BLOCK_BYTES, bytes(32))
    return _merkle_root(layer, _power_of_two(len(layer)), padding)


def _merkle_root(nodes: list[bytes], width: int, padding: bytes) -> bytes:
    """Return the root over `nodes` filled with `padding` to `width`, a power of two."""
    while width > 1:
        if len(nodes) % 2:
            nodes = [*nodes, padding]
        nodes = [_sha256(nodes[i] + nodes[i + 1]) for i in range(0, len(nodes), 2)]
        padding = _sha256(padding + padding)
        width //= 2
    return nodes[0] if nodes else padding


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _is_safe_name(name: str) -> bool:
    return (
        name not in {"", ".", ".."}
        and len(name.encode(errors="replace")) <= MAX_NAME_BYTES
        and _SAFE_NAME.fullmatch(name) is not None
    )
