"""A package as a signed entry of the catalogue: its path, its encoding, and where its files lie on the web server.

An entry is a target of The Update Framework: a path, the archive's length and sha256, and `custom`, a JSON object
with the rest.  Format 1 is described by `encode` and `decode`; unknown keys are ignored, so that a later agent may
add some, an unknown format is refused.  All that comes in is treated as hostile although it is signed: a VO's key
may be stolen, and its VO must not be able to harm a node beyond what its own jobs can do.

The path is `<namespace>/<bin>/<Name>/<version>/<platform>`; `bin` is the start of the sha256 of the name, so that a
namespace that grew large can be divided among roles by glob without any path changing (docs/adr/catalogue-paths.md).

Pure: no I/O, no clock; knows nothing of TUF's signatures and of HTTP.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobagent import bencode
from jobagent.model import (
    WORD,
    Archive,
    Blob,
    EnvironmentAction,
    EnvironmentChange,
    Package,
    PackageId,
    PackageState,
    Tree,
)

FORMAT = 1
BIN_DIGITS = 4  # hex digits of sha256(name) in the path: enough for 65,536 bins

MAX_ENTRY_BYTES = 64 * 1024  # `custom` as JSON
MAX_SIZE_BYTES = 2**53 - 1  # what every JSON reader keeps exactly
MAX_MANIFEST_BYTES = 2**30
MAX_FILES = 10_000_000
MAX_DEPENDENCIES = 256
MAX_CHANGES = 512
MAX_PFNS = 16
MAX_TEXT = 4096  # characters of description, licence, reason, a PFN or a value of the environment
MAX_TIME_S = 253402300799  # the end of the year 9999

_SEGMENT = re.compile(WORD)
_NAMESPACE = re.compile(r"(?:user\.[A-Za-z0-9_][A-Za-z0-9_.+~-]{0,120}|(?!user\.)[a-z0-9_][a-z0-9_.+~-]{0,127})")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+~-]{0,199}")
_FORMAT_NAME = re.compile(r"[a-z][a-z0-9.+-]{0,31}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_PFN = re.compile(r"[a-z][a-z0-9+.-]{0,31}://[!-~]+")
_HEX40 = re.compile(r"[0-9a-f]{40}")
_HEX64 = re.compile(r"[0-9a-f]{64}")


class EntryError(ValueError):
    """An entry breaks a rule of its format; the message says which field and what was expected."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is signed about one package on one platform, as TUF's metadata carry it."""

    path: str
    size_bytes: int
    sha256: str
    custom: Mapping[str, object]


def target_path(package: PackageId, platform: str) -> str:
    """Return the path of a package's entry; raises EntryError where a part of it breaks the grammar."""
    prefix = name_prefix(package.namespace, package.name)
    return f"{prefix}{_word(package.version, 'version')}/{_word(platform, 'platform')}"


def name_prefix(namespace: str, name: str) -> str:
    """Return what the paths of all versions of a package start with, ending in `/`."""
    return f"{checked_namespace(namespace)}/{name_bin(name)}/{_word(name, 'name')}/"


def name_bin(name: str) -> str:
    """Return the first hex digits of the digest of a package name: what divides a namespace among roles."""
    return hashlib.sha256(name.encode()).hexdigest()[:BIN_DIGITS]


def parse_path(path: str) -> tuple[PackageId, str]:
    """Return package and platform of an entry's path; raises EntryError where it is not of that form."""
    parts = path.split("/")
    if len(parts) != 5:
        raise EntryError(f"path {path[:200]!r} is not <namespace>/<bin>/<Name>/<version>/<platform>")
    namespace, digits, name, version, platform = parts
    package = PackageId(checked_namespace(namespace), _word(name, "name"), _word(version, "version"))
    if digits != name_bin(name):
        raise EntryError(f"path {path[:200]!r} is in bin {digits[:20]!r}, expected {name_bin(name)}")
    return package, _word(platform, "platform")


def checked_namespace(text: str) -> str:
    """Return `text`, or raise EntryError where it cannot be a namespace."""
    if not _NAMESPACE.fullmatch(text):
        raise EntryError(f"namespace {text[:80]!r} is not lower case of a-z 0-9 _ . + ~ - (or user.NAME)")
    return text


def archive_path(archive: Archive) -> str:
    """Where an archive lies, relative to the catalogue's base; the part before the name is a BEP 19 web seed."""
    return f"archives/{archive.sha256}/{archive.file_name}"


def torrent_path(archive: Archive) -> str:
    """Where the torrent of an archive lies, relative to the catalogue's base."""
    return f"torrents/{archive.infohash_v2}.torrent"


def object_path(blob: Blob) -> str:
    """Where an object lies, relative to the catalogue's base."""
    return f"objects/{blob.sha256}"


def encode(package: Package) -> Entry:
    """Return the entry of a package.

    Raises:
        EntryError: The package breaks a rule that `decode` would refuse it for.
    """
    custom: dict[str, object] = {
        "format": FORMAT,
        "file": package.archive.file_name,
        "archive": package.archive.format,
        "btmh": package.archive.infohash_v2,
        "manifest": _encode_blob(package.tree.manifest),
        "unpacked": {"bytes": package.tree.size_bytes, "files": package.tree.file_count},
        "published": package.published_s,
        "state": package.state.value,
    }
    optional: dict[str, object] = {
        "btih": package.archive.infohash_v1,
        "requires": [f"{d.namespace}/{d.name}/{d.version}" for d in package.dependencies],
        "environment": [[c.action.value, c.name, c.value] for c in package.environment],
        "reason": package.reason,
        "description": package.description,
        "licence": package.licence,
        "pfns": list(package.pfns),
        "provenance": _encode_blob(package.provenance) if package.provenance else None,
    }
    custom |= {key: value for key, value in optional.items() if value}
    entry = Entry(
        target_path(package.id, package.platform), package.archive.size_bytes, package.archive.sha256, custom
    )
    if decode(entry) != package:
        raise EntryError(f"{package.id} would not survive being signed: its fields are not in normal form")
    return entry


def decode(entry: Entry) -> Package:
    """Return the package that an entry describes.

    Raises:
        EntryError: Wrong format, a missing or malformed field, a limit exceeded, or a path that does not agree.
    """
    package_id, platform = parse_path(entry.path)
    fields = _Fields(entry.custom)
    version = fields.number("format", MAX_SIZE_BYTES)
    if version != FORMAT:
        raise EntryError(f"entry has format {version}, this agent reads format {FORMAT}")
    _check_total(entry.custom)
    unpacked = _Fields(fields.table("unpacked"), "unpacked ")
    provenance = fields.optional_table("provenance")
    return Package(
        id=package_id,
        platform=platform,
        archive=_decode_archive(entry, fields),
        tree=Tree(
            manifest=_decode_blob(fields.table("manifest"), "manifest ", MAX_MANIFEST_BYTES),
            size_bytes=unpacked.number("bytes", MAX_SIZE_BYTES),
            file_count=unpacked.number("files", MAX_FILES),
        ),
        published_s=fields.number("published", MAX_TIME_S),
        dependencies=_decode_dependencies(fields.items("requires", MAX_DEPENDENCIES)),
        environment=tuple(_decode_change(item) for item in fields.items("environment", MAX_CHANGES)),
        state=PackageState(fields.choice("state", tuple(PackageState))),
        reason=fields.prose("reason"),
        description=fields.prose("description"),
        licence=fields.prose("licence"),
        pfns=tuple(_matching(item, _PFN, "pfns") for item in fields.items("pfns", MAX_PFNS)),
        provenance=_decode_blob(provenance, "provenance ", MAX_MANIFEST_BYTES) if provenance is not None else None,
    )


def check_torrent(torrent: bytes, archive: Archive) -> None:
    """Make sure that a torrent is the one of an archive: signed infohashes, one file, its name and its length.

    Raises:
        ValueError: It is not, or cannot be read; says why.
    """
    raw = bytes(bencode.raw_member(torrent, b"info"))
    if hashlib.sha256(raw).hexdigest() != archive.infohash_v2:
        raise ValueError(f"torrent is not {archive.infohash_v2[:16]}…, its info has another sha256")
    if archive.infohash_v1 and hashlib.sha1(raw, usedforsecurity=False).hexdigest() != archive.infohash_v1:
        raise ValueError(f"torrent is not {archive.infohash_v1[:16]}…, its info has another sha1")
    info = bencode.decode(raw)
    if not isinstance(info, dict):
        raise ValueError("info is not a dictionary")
    name, tree = archive.file_name.encode(), info.get(b"file tree")
    leaf = tree.get(name) if isinstance(tree, dict) and len(tree) == 1 else None
    file = leaf.get(b"") if isinstance(leaf, dict) and len(leaf) == 1 else None
    if info.get(b"name") != name or not isinstance(file, dict):
        raise ValueError(f"torrent is not of the one file {archive.file_name}")
    if file.get(b"length") != archive.size_bytes or info.get(b"length", archive.size_bytes) != archive.size_bytes:
        raise ValueError(f"torrent has another length than the {archive.size_bytes} bytes that are signed")


def _decode_archive(entry: Entry, fields: _Fields) -> Archive:
    size: object = entry.size_bytes  # from JSON, whatever the type says
    if type(size) is not int or not 0 < size <= MAX_SIZE_BYTES:
        raise EntryError(f"archive length is {str(size)[:40]!r}, expected 1 to {MAX_SIZE_BYTES}")
    return Archive(
        file_name=fields.matching("file", _FILE_NAME),
        format=fields.matching("archive", _FORMAT_NAME),
        sha256=_matching(entry.sha256, _HEX64, "archive sha256"),
        size_bytes=entry.size_bytes,
        infohash_v1=fields.matching("btih", _HEX40) if "btih" in fields else "",
        infohash_v2=fields.matching("btmh", _HEX64),
    )


def _decode_dependencies(items: Sequence[object]) -> tuple[PackageId, ...]:
    found: dict[PackageId, None] = {}
    for item in items:
        parts = item.split("/") if isinstance(item, str) and len(item) <= 3 * 128 + 2 else []
        if len(parts) != 3:
            raise EntryError(f"requires has {str(item)[:80]!r}, expected namespace/Name/version")
        package = PackageId(checked_namespace(parts[0]), _word(parts[1], "name"), _word(parts[2], "version"))
        if package in found:
            raise EntryError(f"requires names {package} twice")
        found[package] = None
    return tuple(found)


def _decode_change(item: object) -> EnvironmentChange:
    if not isinstance(item, list | tuple) or len(item) != 3:
        raise EntryError("environment has an item that is not [action, name, value]")
    action, name, value = item
    if not isinstance(action, str) or action not in tuple(EnvironmentAction):
        raise EntryError(f"environment has action {str(action)[:40]!r}, expected {', '.join(EnvironmentAction)}")
    return EnvironmentChange(
        EnvironmentAction(action), _matching(name, _VARIABLE, "environment name"), _prose(value, "environment value")
    )


def _encode_blob(blob: Blob) -> dict[str, object]:
    return {"sha256": blob.sha256, "bytes": blob.size_bytes}


def _decode_blob(table: Mapping[str, object], where: str, limit: int) -> Blob:
    fields = _Fields(table, where)
    return Blob(fields.matching("sha256", _HEX64), fields.number("bytes", limit))


def _word(text: str, what: str) -> str:
    return _matching(text, _SEGMENT, what)


def _matching(value: object, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not pattern.fullmatch(value):
        raise EntryError(f"{what} is {str(value)[:80]!r}, expected {pattern.pattern}")
    return value


def _prose(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or not (value.isprintable() or not value):
        raise EntryError(f"{what} is not one printable line of at most {MAX_TEXT} characters")
    return value


def _check_total(custom: Mapping[str, object]) -> None:
    try:
        size_bytes = len(json.dumps(custom))
    except (TypeError, ValueError, RecursionError) as error:
        raise EntryError(f"entry is not JSON: {error}") from error
    if size_bytes > MAX_ENTRY_BYTES:
        raise EntryError(f"entry has {size_bytes} bytes, at most {MAX_ENTRY_BYTES} are accepted")


class _Fields:
    """Typed access to a JSON object; each method raises EntryError with the field and what was expected."""

    __slots__ = ("_table", "_where")

    def __init__(self, table: object, where: str = "") -> None:
        if not isinstance(table, Mapping):
            raise EntryError(f"{where or 'entry'} is not a JSON object")
        self._table: Mapping[str, object] = table
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def number(self, key: str, limit: int) -> int:
        value = self._table.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
            raise EntryError(f"{self._where}{key} is {str(value)[:40]!r}, expected an integer from 0 to {limit}")
        return value

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        return _matching(self._table.get(key), pattern, self._where + key)

    def prose(self, key: str) -> str:
        return _prose(self._table.get(key, ""), self._where + key)

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        value = self._table.get(key)
        if not isinstance(value, str) or value not in allowed:
            raise EntryError(f"{self._where}{key} is {str(value)[:40]!r}, expected {', '.join(allowed)}")
        return value

    def table(self, key: str) -> Mapping[str, object]:
        value = self._table.get(key)
        if not isinstance(value, Mapping):
            raise EntryError(f"{self._where}{key} is not a JSON object")
        return value

    def optional_table(self, key: str) -> Mapping[str, object] | None:
        return self.table(key) if key in self._table else None

    def items(self, key: str, limit: int) -> Sequence[object]:
        value = self._table.get(key, [])
        if not isinstance(value, list | tuple) or len(value) > limit:
            raise EntryError(f"{self._where}{key} is not a list of at most {limit} items")
        return value
