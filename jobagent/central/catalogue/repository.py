"""The signed catalogue on disk: a repository of The Update Framework (TUF 1.0), as plain files for any web server.

root (2 of 3 keys, offline) vouches for targets (2 keys, offline) and for snapshot and timestamp (one online key);
targets delegates to one role per VO, which signs its own packages with its own keys.  Whoever has keys signs what
these keys may sign; the holder of the online key, mostly the central service, gathers it in `refresh`.

A reader always sees a consistent state: files are placed before they are signed for, versions are never rewritten,
and the timestamp, which is replaced in one rename, comes last.  Nothing here asks the network.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, Root, Targets

from jobagent import entry
from jobagent.central import placing
from jobagent.central.catalogue import bins, online, rolefile
from jobagent.central.catalogue.audit import Finding, audit
from jobagent.central.catalogue.ceremony import Ceremony, Waiting
from jobagent.central.catalogue.chain import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, delegated, published, verified
from jobagent.central.catalogue.keys import KeyInfo, KeyStore
from jobagent.central.catalogue.online import Online, Validity
from jobagent.central.catalogue.shelf import AnyMetadata, Shelf
from jobagent.central.placing import Draft
from jobagent.errors import ManagerError, UnknownPackage, UsageError
from jobagent.model import Package, PackageId, PackageState

FIRST_KEYS: Mapping[str, tuple[int, int]] = {ROOT: (3, 2), TARGETS: (2, 2), "online": (1, 1)}  # (keys, threshold)
KINDS: Mapping[str, tuple[str, ...]] = {ROOT: (ROOT,), TARGETS: (TARGETS,), "online": (SNAPSHOT, TIMESTAMP)}


@dataclass(frozen=True, slots=True)
class Signed:
    """What an operation came to: what still waits for signatures, and whether readers see the change already."""

    waiting: tuple[Waiting, ...]
    is_published: bool
    notes: tuple[str, ...] = ()


class Repository:
    """One catalogue directory, and the keys of whoever works on it.

    Every method that changes something holds the directory's lock, so several publishers may work at once.
    `keys` may be left out by readers.
    """

    def __init__(
        self,
        directory: Path,
        keys: KeyStore | None = None,
        *,
        validity: Validity = Validity(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.shelf = Shelf(directory)
        self._keys = keys
        self._validity = validity
        self._clock = clock

    @classmethod
    def create(
        cls,
        directory: Path,
        keys: KeyStore,
        *,
        validity: Validity = Validity(),  # noqa: B008 - frozen
        clock: Callable[[], float] = time.time,
    ) -> tuple[Repository, Signed]:
        """Make a catalogue without VOs, with the keys `root-N`, `targets-N`, `online-N` of `keys`.

        Keys that are not there are made.  Where only public halves are there, the metadata wait for their holders.

        Raises:
            UsageError: The directory holds a catalogue, or a kind of key is there but too few of it.
        """
        repository = cls(directory, keys, validity=validity, clock=clock)
        if (directory / "metadata").exists():
            raise UsageError(
                f"{directory} holds a catalogue already", remedy="name another directory, or use that one"
            )
        chosen = {kind: _first_keys(keys, kind) for kind in FIRST_KEYS}
        repository.shelf.make()
        with repository.shelf.lock():
            root = Root(expires=repository._expiry(ROOT), consistent_snapshot=True)
            for kind, roles in KINDS.items():
                for role in roles:
                    rolefile.set_keys(root, role, [info.key for info in chosen[kind]], FIRST_KEYS[kind][1])
            targets = Targets(expires=repository._expiry(TARGETS))
            return repository, repository._submit({ROOT: Metadata(root), TARGETS: Metadata(targets)})

    # Reading

    def root_bytes(self, version: int = 1) -> bytes:
        """Return a version of the root metadata: what a client needs to be given once."""
        try:
            return self.shelf.path(ROOT, version).read_bytes()
        except OSError as error:
            raise ManagerError(f"{self.directory} has no root v{version}: {error.strerror}") from error

    def snapshot_version(self) -> int:
        """Return the version that readers see now; it changes with every publication.  Cheap, not verified."""
        return int(self.shelf.read(self.shelf.timestamp_path).signed.snapshot_meta.version)

    def namespaces(self) -> tuple[str, ...]:
        """Return all VOs, published or not."""
        head = Ceremony(self.shelf, None).head(TARGETS)
        return tuple(delegated(head.signed)) if head is not None else ()

    def roles(self) -> Iterator[tuple[str, Targets]]:
        """Yield every targets role that readers see now, verified against the chain above it."""
        root = Ceremony(self.shelf, None).root()
        state = published(self.shelf, [root])
        if state is None:
            raise ManagerError(f"{self.directory} has nothing published yet", remedy="jobagent catalogue refresh")
        versions = state.versions
        top = verified(self.shelf, root, TARGETS, versions[TARGETS]).signed
        yield TARGETS, top
        for name in delegated(top):
            if name not in versions:
                continue
            role = verified(self.shelf, top, name, versions[name]).signed
            yield name, role
            for child in delegated(role):
                yield child, verified(self.shelf, role, child, versions[child]).signed

    def packages(self, namespace: str | None = None) -> Iterator[Package]:
        """Yield every package that readers see now, in every state; entries that are malformed are left out."""
        for name, role in self.roles():
            if name != TARGETS and namespace in {None, bins.namespace_of(name)}:
                for path, target in role.targets.items():
                    package = rolefile.package_of(path, target)
                    if package is not None and package.id.namespace == bins.namespace_of(name):
                        yield package

    # Packages

    def publish(self, drafts: Sequence[Draft]) -> Signed:
        """Place the files of new packages and sign them.

        Raises:
            AlreadyPublished: A package of that name, version and platform exists.
            DigestMismatch: A file is not what its package says.
            ManagerError: The VO is unknown or its keys are not at hand.
        """
        with self.shelf.lock():
            changes = self._with_packages([draft.package for draft in drafts])
            for draft in drafts:
                placing.place(self.directory, draft)
            return self._submit(changes)

    def register(self, packages: Sequence[Package]) -> Signed:
        """Sign new packages whose files are in place already, or are brought by other means."""
        with self.shelf.lock():
            return self._submit(self._with_packages(packages))

    def set_state(self, package: PackageId, state: PackageState, *, reason: str = "", platform: str = "") -> Signed:
        """Withdraw, ban or release again a published package, on one platform or all.

        Raises:
            UnknownPackage: It is not in the catalogue.
        """
        with self.shelf.lock():
            ceremony = self._ceremony()
            namespace = self._open(ceremony, bins.checked_namespace(package.namespace))
            role = bins.role_of(package.namespace, package.name, bins.digits_of(namespace.signed))
            metadata = self._open(ceremony, role)
            prefix = entry.name_prefix(package.namespace, package.name) + f"{package.version}/"
            found = [path for path in metadata.signed.targets if path.startswith(prefix)]
            paths = [path for path in found if platform in {"", path.removeprefix(prefix)}]
            if not paths:
                raise UnknownPackage(f"{package} is not in the catalogue {self.directory}")
            for path in paths:
                known = rolefile.package_of(path, metadata.signed.targets[path])
                if known is None:
                    raise ManagerError(f"entry {path} is malformed", remedy="jobagent catalogue check")
                changed = dataclasses.replace(known, state=state, reason=reason)
                metadata.signed.targets[path] = rolefile.target_of(rolefile.encoded(changed))
            return self._submit({role: metadata})

    # VOs

    def add_vo(self, namespace: str, keys: Sequence[Key], threshold: int = 1) -> Signed:
        """Give a VO a role of its own; needs the keys of targets, and the VO's own where they are at hand.

        Raises:
            UsageError: The name is reserved, the VO exists, or the threshold cannot be met.
        """
        with self.shelf.lock():
            bins.checked_namespace(namespace)
            rolefile.check_threshold(namespace, keys, threshold)
            ceremony = self._ceremony()
            targets = self._open(ceremony, TARGETS)
            if namespace in delegated(targets.signed):
                raise UsageError(f"VO {namespace} exists", remedy="jobagent vo rotate changes its keys")
            rolefile.delegate(targets.signed, namespace, keys, threshold)
            version = max(self.shelf.versions().get(namespace, [0])) + 1
            changes: dict[str, AnyMetadata] = {TARGETS: targets}
            if self._keys is not None and self._keys.signers([key.keyid for key in keys]):
                changes[namespace] = Metadata(Targets(version=version, expires=self._expiry(namespace)))
            return self._submit(changes)

    def rotate_vo(self, namespace: str, keys: Sequence[Key], threshold: int | None = None) -> Signed:
        """Replace the keys of a VO; its packages are signed anew, by the new keys."""
        with self.shelf.lock():
            ceremony = self._ceremony()
            targets = self._open(ceremony, TARGETS)
            threshold = threshold or rolefile.delegation_of(targets.signed, namespace).threshold
            rolefile.check_threshold(namespace, keys, threshold)
            role = self._open(ceremony, namespace)
            changes: dict[str, AnyMetadata] = {TARGETS: targets, namespace: role}
            for child in delegated(role.signed):
                changes[child] = self._open(ceremony, child)
            rolefile.delegate(targets.signed, namespace, keys, threshold)
            if digits := bins.digits_of(role.signed):
                by_id = {key.keyid: key for key in keys}
                role.signed.delegations = bins.delegations(namespace, digits, by_id, threshold)
            return self._submit(changes)

    def revoke_vo(self, namespace: str) -> Signed:
        """Take a VO out of the catalogue: readers find none of its packages any more."""
        with self.shelf.lock():
            targets = self._open(self._ceremony(), TARGETS)
            rolefile.delegation_of(targets.signed, namespace)
            roles = dict(delegated(targets.signed))
            del roles[namespace]
            rolefile.set_delegations(targets.signed, roles, rolefile.keys_of(targets.signed))
            return self._submit({TARGETS: targets})

    def vo_keys(self, namespace: str) -> tuple[tuple[Key, ...], int]:
        """Return the keys of a VO and its threshold."""
        head = Ceremony(self.shelf, None).head(TARGETS)
        if head is None:
            raise ManagerError(f"{self.directory} has no targets metadata yet")
        role = rolefile.delegation_of(head.signed, namespace)
        return tuple(rolefile.keys_of(head.signed)[i] for i in role.keyids), role.threshold

    # Top-level keys and signatures

    def rotate(self, kind: str, keys: Sequence[Key], threshold: int | None = None) -> Signed:
        """Replace the keys of `root`, `targets` or `online` by a new version of root.

        It is installed when old and new root keys have signed, and the new keys of targets have signed targets; old
        clients follow the chain of roots.
        """
        with self.shelf.lock():
            ceremony = self._ceremony()
            if kind not in KINDS:
                raise UsageError(f"no keys of {kind}", remedy="root, targets or online")
            waiting = ceremony.pending.get(ROOT)
            root = Root.from_dict((waiting.signed if waiting else ceremony.root()).to_dict())
            root.version = ceremony.root().version + 1
            root.expires = self._expiry(ROOT)
            for role in KINDS[kind]:
                rolefile.set_keys(root, role, keys, threshold or root.roles[role].threshold)
            changes: dict[str, AnyMetadata] = {ROOT: Metadata(root)}
            if kind == TARGETS:
                changes[TARGETS] = self._open(ceremony, TARGETS)
            return self._submit(changes)

    def renew(self, role: str) -> Signed:
        """Sign a role again unchanged, for a new expiry: `root`, `targets`, or a VO with all its bins."""
        if role == ROOT:
            current = Ceremony(self.shelf, None).root()
            return self.rotate(ROOT, [current.keys[i] for i in current.roles[ROOT].keyids])
        with self.shelf.lock():
            ceremony = self._ceremony()
            metadata = self._open(ceremony, role)
            below = delegated(metadata.signed) if role != TARGETS else {}
            return self._submit({role: metadata, **{child: self._open(ceremony, child) for child in below}})

    def waiting(self) -> tuple[Waiting, ...]:
        """Return what waits for signatures."""
        return tuple(Ceremony(self.shelf, None).waiting())

    def sign(self, roles: Sequence[str] = ()) -> Signed:
        """Add the signatures of the keys at hand to what waits, and publish what is complete."""
        with self.shelf.lock():
            ceremony = self._ceremony()
            ceremony.sign(roles)
            return self._gather(ceremony, roles or tuple(ceremony.pending))

    def discard(self, role: str) -> None:
        """Give up a change that waits for signatures."""
        with self.shelf.lock():
            if role not in self.shelf.pending():
                raise UsageError(f"{role} does not wait for signatures")
            self.shelf.drop_pending(role)

    def refresh(self, *, is_forced: bool = False) -> Signed:
        """Take up everything that is completely signed into a new snapshot, and sign the timestamp anew.

        Does nothing while nothing has changed and more than half of the validity is left, unless `is_forced`.

        Raises:
            ManagerError: The online key is not at hand, or no consistent state can be found.
        """
        with self.shelf.lock():
            ceremony = self._ceremony()
            ceremony.settle()
            return self._gather(ceremony, is_forced=is_forced, is_required=True)

    def check(self, *, is_deep: bool = False) -> Iterator[Finding]:
        """Yield everything that is wrong in the directory, and what will be soon."""
        return audit(self.shelf, is_deep=is_deep, clock=self._clock)

    # Below the surface

    def _ceremony(self) -> Ceremony:
        return Ceremony(self.shelf, self._keys)

    def _expiry(self, role: str) -> datetime:
        return online.expiry(role, self._validity, self._clock)

    def _submit(self, changes: Mapping[str, AnyMetadata]) -> Signed:
        ceremony = self._ceremony()
        ceremony.submit(changes)
        return self._gather(ceremony, tuple(changes))

    def _gather(
        self, ceremony: Ceremony, roles: Sequence[str] = (), *, is_forced: bool = False, is_required: bool = False
    ) -> Signed:
        work = Online(self.shelf, self._keys, validity=self._validity, clock=self._clock)
        gathered = work.gather(ceremony, is_forced=is_forced, is_required=is_required)
        waiting = tuple(Ceremony(self.shelf, None).waiting())
        is_waiting = any(item.role in roles for item in waiting)
        return Signed(waiting, gathered.is_published and not is_waiting, tuple(gathered.notes))

    def _open(self, ceremony: Ceremony, role: str) -> Metadata[Targets]:
        """Return the next version of a role, to be changed: of what waits for signatures, or of the newest."""
        if role in ceremony.pending:
            current, version = ceremony.pending[role], ceremony.pending[role].signed.version
        else:
            on_disk = self.shelf.versions().get(role, [])
            head = ceremony.head(role)
            if head is None and on_disk and bins.SEPARATOR not in role:
                raise ManagerError(f"no version of {role} is signed by its keys", remedy="jobagent catalogue check")
            current, version = head or Metadata(Targets()), max(on_disk, default=0) + 1
        signed = Targets.from_dict(current.signed.to_dict())
        signed.version, signed.expires = version, self._expiry(role)
        return Metadata(signed)

    def _with_packages(self, packages: Iterable[Package]) -> dict[str, AnyMetadata]:
        """Return the roles that change when `packages` are added."""
        ceremony = self._ceremony()
        changes: dict[str, Metadata[Targets]] = {}
        touched: dict[str, int] = {}
        for package in packages:
            namespace = package.id.namespace
            if namespace not in touched:
                if not ceremony.authorities(namespace):
                    raise ManagerError(f"the catalogue has no VO {namespace}", remedy="jobagent vo add")
                changes[namespace] = self._open(ceremony, namespace)
                touched[namespace] = bins.digits_of(changes[namespace].signed)
            role = bins.role_of(namespace, package.id.name, touched[namespace])
            if role not in changes:
                changes[role] = self._open(ceremony, role)
            rolefile.add_package(changes[role].signed, package)
        for namespace, digits in touched.items():
            roles = [r for r in changes if bins.namespace_of(r) == namespace]
            if any(bins.needs_division(changes[r].signed, digits) for r in roles):
                changes |= self._divided(ceremony, namespace, digits, changes)
            elif digits:
                del changes[namespace]  # only its bins change
        return dict(changes)

    def _divided(
        self, ceremony: Ceremony, namespace: str, digits: int, changes: Mapping[str, Metadata[Targets]]
    ) -> dict[str, Metadata[Targets]]:
        """Return the namespace role and its bins after dividing it further, until every bin is small enough."""
        top = changes[namespace]
        sources = [changes.get(r) or self._open(ceremony, r) for r in (namespace, *delegated(top.signed))]
        everything = {path: target for source in sources for path, target in source.signed.targets.items()}
        keys, threshold = self.vo_keys(namespace)
        while True:
            digits += 1
            top.signed.targets = {}
            top.signed.delegations = bins.delegations(namespace, digits, {k.keyid: k for k in keys}, threshold)
            divided = {namespace: top}
            for role in delegated(top.signed):
                divided[role] = self._open(ceremony, role)
                divided[role].signed.targets = {}
            for path, target in everything.items():
                divided[bins.role_of(namespace, path.split("/")[2], digits)].signed.targets[path] = target
            if not any(bins.needs_division(role.signed, digits) for role in divided.values()):
                return divided


def _first_keys(keys: KeyStore, kind: str) -> list[KeyInfo]:
    """Return the keys of one kind for a new catalogue, made where there are none."""
    number, _ = FIRST_KEYS[kind]
    there = keys.keys().values() if keys.directory.is_dir() else ()
    found = [info for info in there if info.name == kind or info.name.startswith(f"{kind}-")]
    if not found:
        return [keys.new(f"{kind}-{n}" if number > 1 else kind) for n in range(1, number + 1)]
    if len(found) < number:
        raise UsageError(
            f"{keys.directory} has {len(found)} keys of {kind}, {number} are needed",
            remedy=f"add public halves {kind}-N.pub, or remove them all to have new ones made",
        )
    return found
