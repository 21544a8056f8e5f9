"""Checking a whole catalogue directory as a suspicious reader would: signatures, expiry, entries, files.

Finds everything that is wrong instead of stopping at the first; changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Signed, Targets

from jobagent import entry, manifest
from jobagent.central.catalogue.ceremony import Ceremony
from jobagent.central.catalogue.chain import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, delegated, published, verified
from jobagent.central.catalogue.rolefile import entry_of
from jobagent.central.catalogue.shelf import Shelf
from jobagent.errors import ManagerError
from jobagent.model import Package

WARNING_S = 14 * 86400  # people need time to meet; online roles warn below a quarter of a day
ONLINE_WARNING_S = 6 * 3600


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or soon will be; `is_error` says that readers suffer now."""

    message: str
    is_error: bool = True

    def __str__(self) -> str:
        return f"{'error' if self.is_error else 'warning'}: {self.message}"


def audit(shelf: Shelf, *, is_deep: bool = False, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """Yield what is wrong in a catalogue directory.

    Args:
        shelf: The directory.
        is_deep: Also read every archive and object and compare the digest, which takes as long as reading them.
        clock: Seconds since the epoch.
    """
    try:
        root = Ceremony(shelf, None).root()
        state = published(shelf, [root])
    except ManagerError as error:
        yield Finding(str(error))
        return
    if state is None:
        yield Finding(f"{shelf.directory} has no timestamp: nothing is published")
        return
    now_s = clock()
    yield from _expiry(ROOT, root, now_s)
    yield from _expiry(TIMESTAMP, state.timestamp.signed, now_s)
    yield from _expiry(SNAPSHOT, state.snapshot.signed, now_s)
    versions = state.versions
    try:
        top = verified(shelf, root, TARGETS, versions[TARGETS]).signed
    except (ManagerError, KeyError) as error:
        yield Finding(f"targets: {error}")
        return
    yield from _expiry(TARGETS, top, now_s)
    for namespace in delegated(top):
        yield from _namespace(shelf, top, namespace, versions, now_s, is_deep)
    for role in shelf.pending():
        yield Finding(f"{role} waits for signatures", is_error=False)
    newer = [r for r, found in shelf.versions().items() if r in versions and found[0] > versions[r]]
    if newer:
        yield Finding(f"newer metadata are not published yet: {', '.join(newer)}", is_error=False)


def _namespace(
    shelf: Shelf, top: Targets, namespace: str, versions: dict[str, int], now_s: float, is_deep: bool
) -> Iterator[Finding]:
    if namespace not in versions:
        yield Finding(f"VO {namespace} has not signed anything yet", is_error=False)
        return
    pending: list[tuple[Targets, str]] = [(top, namespace)]
    while pending:
        above, name = pending.pop()
        try:
            role = verified(shelf, above, name, versions[name]).signed
        except (ManagerError, KeyError) as error:
            yield Finding(f"{name}: {error}")
            continue
        yield from _expiry(name, role, now_s)
        pending += [(role, child) for child in delegated(role)]
        covered = delegated(above)[name]
        for path, target in role.targets.items():
            if not covered.is_delegated_path(path):
                yield Finding(f"{name} speaks about {path}, which is not its own: readers do not look there")
                continue
            try:
                package = entry.decode(entry_of(path, target))
            except entry.EntryError as error:
                yield Finding(f"{path}: {error}")
                continue
            yield from _files(shelf.directory, package, is_deep)


def _expiry(role: str, signed: Signed, now_s: float) -> Iterator[Finding]:
    expires_s = signed.expires.timestamp()
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(expires_s))
    if expires_s <= now_s:
        yield Finding(f"{role} expired at {when}")
    elif expires_s - now_s < (ONLINE_WARNING_S if role in {SNAPSHOT, TIMESTAMP} else WARNING_S):
        yield Finding(f"{role} expires at {when}", is_error=False)


def _files(base: Path, package: Package, is_deep: bool) -> Iterator[Finding]:
    wanted = [(entry.archive_path(package.archive), package.archive.blob)]
    wanted += [(entry.object_path(b), b) for b in (package.tree.manifest, package.provenance) if b is not None]
    for relative, blob in wanted:
        path = base / relative
        if not path.is_file():
            yield Finding(f"{package.id}: {relative} is missing")
        elif path.stat().st_size != blob.size_bytes or (is_deep and manifest.hash_file(path) != blob.sha256):
            yield Finding(f"{package.id}: {relative} is not what was signed")
    try:
        entry.check_torrent((base / entry.torrent_path(package.archive)).read_bytes(), package.archive)
    except (OSError, ValueError) as error:
        yield Finding(f"{package.id}: its torrent cannot be used: {error}")
