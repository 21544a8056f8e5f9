"""Collecting signatures: role metadata waits in `pending/` until its threshold is met, then joins the shelf.

Two people with a key each sign one after the other, on any machine that sees the directory.  What decides is the
delegation: a role is complete when the role above it vouches for it, as it stands or as it waits itself (a rotation
changes both).  A root is complete when the root before it and it itself vouch for it.

Private keys come from the `KeyStore` of whoever runs the command; this module knows nothing of packages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Targets

from jobagent.central.catalogue import bins
from jobagent.central.catalogue.chain import ROOT, TARGETS, Delegator, published, role_in, verified, vouches
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.shelf import AnyMetadata, Shelf
from jobagent.errors import ManagerError


@dataclass(frozen=True, slots=True)
class Waiting:
    """A role that waits for signatures: how many of the needed ones it has."""

    role: str
    version: int
    signatures: int
    threshold: int

    def __str__(self) -> str:
        return f"{self.role} v{self.version} has {self.signatures} of {self.threshold} signatures"


class Ceremony:
    """Signing with the keys at hand.

    Made anew for each operation, under the shelf's lock: it remembers what it read.
    """

    def __init__(self, shelf: Shelf, keys: KeyStore | None) -> None:
        self._shelf = shelf
        self._keys = keys
        # What is on the shelf already was moved by somebody who could not remove it here any more.
        self._pending = {r: m for r, m in shelf.pending().items() if not shelf.path(r, m.signed.version).exists()}
        self._standing: dict[str, Delegator | None] = {}
        self._roots: list[Root] | None = None

    @property
    def pending(self) -> Mapping[str, AnyMetadata]:
        """What waits for signatures, by role."""
        return self._pending

    def roots(self) -> list[Root]:
        """Return all roots, newest first, each verified by the one before it and by itself; none at first.

        Raises:
            ManagerError: A link of the chain is broken.
        """
        if self._roots is None:
            self._roots = []
            for version in sorted(self._shelf.versions().get(ROOT, ())):
                path = self._shelf.path(ROOT, version)
                metadata = self._shelf.read(path)
                for authority in (*self._roots[:1], metadata.signed):
                    if not vouches(authority, ROOT, metadata):
                        raise ManagerError(
                            f"{path} breaks the chain of roots: it is not signed by v{authority.version}"
                        )
                self._roots.insert(0, metadata.signed)
        return self._roots

    def root(self) -> Root:
        """Return the newest root; raises ManagerError where there is none."""
        if not self.roots():
            raise ManagerError(
                f"{self._shelf.directory} has no root yet",
                remedy="jobagent catalogue init, or catalogue sign until the threshold is met",
            )
        return self.roots()[0]

    def root_or_none(self) -> Root | None:
        """Return the newest root, or `None` while the first one waits for signatures."""
        return next(iter(self.roots()), None)

    def authorities(self, role: str) -> list[Delegator]:
        """Return who may vouch for `role`: the delegator as it stands, then as it waits for signatures."""
        namespace = bins.namespace_of(role)
        above = ROOT if role in {ROOT, TARGETS} else TARGETS if role == namespace else namespace
        if above not in self._standing:
            self._standing[above] = self.root_or_none() if above == ROOT else self._head_of(above)
        candidates = (self._standing[above], self._pending[above].signed if above in self._pending else None)
        return [c for c in candidates if c is not None and role_in(c, role) is not None]

    def head(self, role: str) -> Metadata[Targets] | None:
        """Return the newest version of a targets role that an authority vouches for, published or not.

        Where there is none, because its keys were replaced and the new ones have not signed yet, it is the version
        that readers see: never a newer one that only the old keys vouch for.
        """
        authorities = self.authorities(role)
        for version in self._shelf.versions().get(role, ()):
            for authority in authorities:
                try:
                    return verified(self._shelf, authority, role, version)
                except ManagerError:
                    continue
        return self._published(role)

    def submit(self, changes: Mapping[str, AnyMetadata]) -> list[Waiting]:
        """Put changed roles up for signature, sign what the keys at hand can, and return what still waits.

        Raises:
            ManagerError: No key at hand may sign any of it; nothing is kept then.
        """
        for role, metadata in changes.items():
            metadata.signatures.clear()
            self._pending[role] = metadata
        if not sum(self._add_signatures(role, metadata) for role, metadata in changes.items()):
            where = f"{self._keys.directory} holds" if self._keys is not None else "without --keys there is"
            raise ManagerError(f"{where} no key that may sign {', '.join(sorted(changes))}")
        for role in sorted(changes, key=_height):
            self._shelf.put_pending(role, changes[role])
        self.settle()
        return self.waiting()

    def sign(self, roles: Sequence[str] = ()) -> list[Waiting]:
        """Add signatures to pending roles (default: all), move what is complete to the shelf, and return the rest.

        A complete root stays in `pending` until `Repository.refresh` installs it.
        """
        for role in roles or tuple(self._pending):
            if role not in self._pending:
                raise ManagerError(f"{role} does not wait for signatures", remedy="see jobagent catalogue sign")
            if self._add_signatures(role, self._pending[role]):
                self._shelf.put_pending(role, self._pending[role])
        self.settle()
        return self.waiting()

    def settle(self) -> None:
        """Move what is complete to the shelf.

        From the bottom up, as in `submit`: wherever this is cut short, no role says less than the one before it
        without those below it that say the rest.
        """
        complete = sorted((r for r, m in self._pending.items() if r != ROOT and self.is_complete(r, m)), key=_height)
        for role in complete:
            self._shelf.write(role, self._pending.pop(role))
        for role in self._shelf.pending():
            if role not in self._pending:
                self._shelf.drop_pending(role)
        self._standing.clear()

    def waiting(self) -> list[Waiting]:
        """Return what waits for signatures."""
        return [self._waiting(role, metadata) for role, metadata in sorted(self._pending.items())]

    def is_complete(self, role: str, metadata: AnyMetadata) -> bool:
        """Whether enough of the right keys have signed: those of the delegator as it will be, for a root of both."""
        authorities = self.authorities(role)
        deciding = authorities if role == ROOT else authorities[-1:]
        return bool(deciding) and all(vouches(authority, role, metadata) for authority in deciding)

    def _head_of(self, role: str) -> Targets | None:
        metadata = self.head(role)
        return metadata.signed if metadata is not None else None

    def _add_signatures(self, role: str, metadata: AnyMetadata) -> bool:
        if self._keys is None:
            return False
        known = [role_in(authority, role) for authority in self.authorities(role)]
        missing = {i for entry in known if entry is not None for i in entry.keyids} - set(metadata.signatures)
        signers = self._keys.signers(sorted(missing))
        for signer in signers:
            try:
                metadata.sign(signer, append=True)
            except UnsignedMetadataError as error:
                cause = error.__cause__
                why = f"{type(cause).__name__} {cause}" if cause is not None else str(error)
                raise ManagerError(f"key {signer.public_key.keyid[:12]}… cannot sign {role}: {why}") from error
        return bool(signers)

    def _published(self, role: str) -> Metadata[Targets] | None:
        """Return the version of a VO's role or bin that readers see, verified along the chain that they follow."""
        state = published(self._shelf, self.roots())
        if state is None or role == TARGETS or role not in state.versions:
            return None
        versions, namespace = state.versions, bins.namespace_of(role)
        try:
            above = verified(self._shelf, self.root(), TARGETS, versions[TARGETS])
            for name in dict.fromkeys((namespace, role)):
                above = verified(self._shelf, above.signed, name, versions[name])
        except (ManagerError, KeyError):
            return None
        return above

    def _waiting(self, role: str, metadata: AnyMetadata) -> Waiting:
        authorities = self.authorities(role)
        worst = Waiting(role, metadata.signed.version, 0, 1)
        for authority in authorities if role == ROOT else authorities[-1:]:
            result = authority.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
            worst = Waiting(role, metadata.signed.version, len(result.signed), result.threshold)
            if not result:
                break
        return worst


def _height(role: str) -> int:
    """Order roles from the bottom up: bins, VOs, targets, root."""
    return {ROOT: 3, TARGETS: 2}.get(role, 0 if bins.SEPARATOR in role else 1)
