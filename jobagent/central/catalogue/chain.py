"""Who vouches for whom: the rules of delegation, applied to the files of a catalogue directory.

    root → targets → one role per VO → its bins
    root → timestamp → snapshot, which names the versions that readers see

Reads and verifies; signs and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Role, Root, Snapshot, Targets, Timestamp

from jobagent.central.catalogue.shelf import AnyMetadata, Shelf
from jobagent.errors import ManagerError

ROOT, TARGETS, SNAPSHOT, TIMESTAMP = "root", "targets", "snapshot", "timestamp"
Delegator = Root | Targets


@dataclass(frozen=True, slots=True)
class Published:
    """The state that readers see: verified timestamp and snapshot, and the versions they name."""

    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]

    @property
    def versions(self) -> dict[str, int]:
        """Version of every targets role."""
        return {name.removesuffix(".json"): meta.version for name, meta in self.snapshot.signed.meta.items()}


def published(shelf: Shelf, roots: Sequence[Root]) -> Published | None:
    """Return what readers see, vouched for by one of `roots`; `None` in a catalogue that never had a timestamp.

    Raises:
        ManagerError: None of the roots vouches for it, or a file is damaged.
    """
    if not shelf.timestamp_path.exists():
        return None
    timestamp = _vouched(shelf.read(shelf.timestamp_path), TIMESTAMP, roots)
    version = timestamp.signed.snapshot_meta.version
    return Published(timestamp, _vouched(shelf.read(shelf.path(SNAPSHOT, version)), SNAPSHOT, roots))


def verified(shelf: Shelf, delegator: Delegator, role: str, version: int) -> Metadata[Targets]:
    """Read a targets role and verify that `delegator` vouches for it; raises ManagerError."""
    path = shelf.path(role, version)
    metadata = shelf.read(path)
    try:
        if not isinstance(metadata.signed, Targets) or metadata.signed.version != version:
            raise RepositoryError(f"it is not version {version} of a targets role")
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise ManagerError(f"{path} cannot be used: {error}") from error
    return metadata


def delegated(role: Targets) -> Mapping[str, DelegatedRole]:
    """Return what a targets role delegates, by name."""
    return (role.delegations.roles or {}) if role.delegations is not None else {}


def role_in(delegator: Delegator, role: str) -> Role | None:
    """Return what `delegator` says about the keys of `role`, or `None` where it says nothing."""
    return delegator.roles.get(role) if isinstance(delegator, Root) else delegated(delegator).get(role)


def vouches(delegator: Delegator, role: str, metadata: AnyMetadata) -> bool:
    """Whether `metadata` has the signatures that `delegator` asks for."""
    if role_in(delegator, role) is None:
        return False
    return bool(delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures))


def _vouched(metadata: AnyMetadata, role: str, roots: Sequence[Root]) -> AnyMetadata:
    if metadata.signed.type == role and any(vouches(root, role, metadata) for root in roots):
        return metadata
    raise ManagerError(f"{role} v{metadata.signed.version} is not signed by the online key", remedy="restore it")
