"""What the online key signs: the snapshot of all versions that fit together, and the timestamp that points to it.

Also the one moment when a new root goes live, because readers follow a new root at once and must then find
a timestamp and targets that it vouches for: where old keys are still at hand, both keys sign for the change-over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Timestamp

from jobagent.central.catalogue.adoption import adopt
from jobagent.central.catalogue.ceremony import Ceremony
from jobagent.central.catalogue.chain import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Published, published, vouches
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.shelf import AnyMetadata, Shelf
from jobagent.errors import ManagerError

DAY_S = 86400


@dataclass(frozen=True, slots=True)
class Validity:
    """For how many seconds a signature is good.  Short where the key is online, long where people must meet."""

    root_s: int = 365 * DAY_S
    targets_s: int = 365 * DAY_S
    vo_s: int = 365 * DAY_S
    snapshot_s: int = 7 * DAY_S
    timestamp_s: int = DAY_S

    def of(self, role: str) -> int:
        """Return the seconds for a role."""
        named = {ROOT: self.root_s, TARGETS: self.targets_s, SNAPSHOT: self.snapshot_s, TIMESTAMP: self.timestamp_s}
        return named.get(role, self.vo_s)


@dataclass(slots=True)
class Gathered:
    """What a gathering came to: whether readers see everything that is signed, and why not."""

    is_published: bool = False
    notes: list[str] = field(default_factory=list)


class Online:
    """The work of the holder of the online key."""

    def __init__(
        self, shelf: Shelf, keys: KeyStore | None, *, validity: Validity, clock: Callable[[], float]
    ) -> None:
        self._shelf = shelf
        self._keys = keys
        self._validity = validity
        self._clock = clock

    def gather(self, ceremony: Ceremony, *, is_forced: bool = False, is_required: bool = False) -> Gathered:
        """Publish all that is completely signed: install a new root, make a new snapshot, stamp it.

        Without the online key nothing is published and a note says so; with `is_required` that is an error.

        Raises:
            ManagerError: No consistent state, or a missing key where it is required.
        """
        result = Gathered()
        root, successor = ceremony.root_or_none(), self._successor(ceremony)
        if root is None and successor is None:
            result.notes.append("root waits for signatures")
            return result
        before = published(self._shelf, ceremony.roots())
        successor = self._checked_successor(root, successor, before, result)
        newest = successor or root
        assert newest is not None  # one of them is there, see above
        try:
            adoption = adopt(self._shelf, newest, before.versions if before else {})
        except ManagerError:
            if before is not None or TARGETS not in ceremony.pending:
                raise
            result.notes.append("targets waits for signatures")  # a catalogue that is being founded
            return result
        result.notes += adoption.left_out
        snapshot = self._next_snapshot(before, adoption.versions, is_forced or successor is not None)
        timestamp = self._next_timestamp(before, snapshot, is_forced)
        if timestamp is None and successor is None:
            result.is_published = True
            return result
        fresh = {SNAPSHOT: snapshot, TIMESTAMP: timestamp}
        if not self._sign(fresh, [r for r in (root, successor) if r is not None], newest, before):
            if is_required:
                raise ManagerError("the online key is not at hand", remedy="give --keys with the key of snapshot")
            result.notes.append("waits for the holder of the online key: jobagent catalogue refresh")
            return result
        self._commit(snapshot, timestamp, root, ceremony.pending[ROOT] if successor else None)
        if before is None or adoption.versions != before.versions:
            self._shelf.prune({**adoption.versions, SNAPSHOT: snapshot.signed.version if snapshot else 0})
        result.is_published = True
        return result

    def _successor(self, ceremony: Ceremony) -> Root | None:
        waiting = ceremony.pending.get(ROOT)
        return waiting.signed if waiting is not None and ceremony.is_complete(ROOT, waiting) else None

    def _checked_successor(
        self, root: Root | None, successor: Root | None, before: Published | None, result: Gathered
    ) -> Root | None:
        """Return the successor if the catalogue could be read under it, else `None` with a note."""
        if successor is None or root is None:
            return successor
        try:
            adopt(self._shelf, successor, before.versions if before else {})
        except ManagerError as error:
            result.notes.append(f"the new root waits until targets is signed by its new keys: {error.cause_line}")
            return None
        return successor

    def _next_snapshot(
        self, before: Published | None, versions: Mapping[str, int], is_forced: bool
    ) -> Metadata[Snapshot] | None:
        if before and versions == before.versions and not is_forced and self._is_young(before.snapshot, SNAPSHOT):
            return None
        version = before.snapshot.signed.version + 1 if before else 1
        meta = {f"{role}.json": MetaFile(number) for role, number in sorted(versions.items())}
        return Metadata(Snapshot(version=version, expires=self._expiry(SNAPSHOT), meta=meta))

    def _next_timestamp(
        self, before: Published | None, snapshot: Metadata[Snapshot] | None, is_forced: bool
    ) -> Metadata[Timestamp] | None:
        if before and snapshot is None and not is_forced and self._is_young(before.timestamp, TIMESTAMP):
            return None
        version = before.timestamp.signed.version + 1 if before else 1
        meta = before.timestamp.signed.snapshot_meta if before and snapshot is None else MetaFile(1)
        return Metadata(Timestamp(version=version, expires=self._expiry(TIMESTAMP), snapshot_meta=meta))

    def _sign(
        self,
        fresh: Mapping[str, AnyMetadata | None],
        roots: Sequence[Root],
        newest: Root,
        before: Published | None,
    ) -> bool:
        """Sign what is fresh with all keys that the roots name; False where `newest` would not vouch for it."""
        snapshot, timestamp = fresh[SNAPSHOT], fresh[TIMESTAMP]
        for role, metadata in fresh.items():
            if metadata is None:
                continue
            if metadata is timestamp and snapshot is not None:
                data = snapshot.to_bytes()
                digest = hashlib.sha256(data).hexdigest()
                metadata.signed.snapshot_meta = MetaFile(snapshot.signed.version, len(data), {"sha256": digest})
            key_ids = sorted({i for root in roots for i in root.roles[role].keyids})
            for signer in self._keys.signers(key_ids) if self._keys else ():
                metadata.sign(signer, append=True)
            if not vouches(newest, role, metadata):
                return False
        stands = before is not None and snapshot is None and not vouches(newest, SNAPSHOT, before.snapshot)
        return not stands

    def _commit(
        self,
        snapshot: Metadata[Snapshot] | None,
        timestamp: Metadata[Timestamp] | None,
        root: Root | None,
        successor: Metadata[Root] | None,
    ) -> None:
        """Write in the order in which a reader in between sees a whole state: the timestamp last."""
        old_readers_follow = root is not None and timestamp is not None and vouches(root, TIMESTAMP, timestamp)
        if snapshot is not None:
            self._shelf.write(SNAPSHOT, snapshot, is_unpublished=True)
        if successor is not None and not old_readers_follow:
            self._shelf.write(ROOT, successor)
        if timestamp is not None:
            self._shelf.write_timestamp(timestamp)
        if successor is not None:
            self._shelf.write(ROOT, successor)
            self._shelf.drop_pending(ROOT)

    def _is_young(self, metadata: AnyMetadata, role: str) -> bool:
        left_s = metadata.signed.expires.timestamp() - self._clock()
        return bool(left_s > self._validity.of(role) / 2)

    def _expiry(self, role: str) -> datetime:
        return expiry(role, self._validity, self._clock)


def expiry(role: str, validity: Validity, clock: Callable[[], float]) -> datetime:
    """Return when a signature of `role` made now ends."""
    return datetime.fromtimestamp(int(clock()) + validity.of(role), UTC)
