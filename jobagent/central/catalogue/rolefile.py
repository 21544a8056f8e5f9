"""What role metadata say: their keys, their delegations, their packages.

Pure: takes the objects of `tuf.api.metadata` and changes them; reads and signs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Role, Root, TargetFile, Targets

from jobagent import entry
from jobagent.central.catalogue import bins
from jobagent.central.catalogue.chain import delegated
from jobagent.errors import AlreadyPublished, UsageError
from jobagent.model import Package


def set_keys(root: Root, role: str, keys: Sequence[Key], threshold: int) -> None:
    """Give a top-level role these keys and no others; raises UsageError where the threshold cannot be met."""
    check_threshold(role, keys, threshold)
    root.roles[role] = Role([], threshold)
    for key in keys:
        root.add_key(key, role)
    used = {key_id for entry in root.roles.values() for key_id in entry.keyids}
    root.keys = {key_id: key for key_id, key in root.keys.items() if key_id in used}


def check_threshold(role: str, keys: Sequence[Key], threshold: int) -> None:
    """Raise UsageError where so many signatures cannot be made with these keys."""
    number = len({key.keyid for key in keys})
    if not 1 <= threshold <= number:
        raise UsageError(f"{role} cannot need {threshold} signatures with {number} keys")


def delegation_of(targets: Targets, namespace: str) -> DelegatedRole:
    """Return the delegation to a VO; raises UsageError where there is none."""
    role = delegated(targets).get(namespace)
    if role is None:
        raise UsageError(
            f"the catalogue has no VO {namespace}", remedy=f"it has: {', '.join(delegated(targets)) or 'none'}"
        )
    return role


def delegate(targets: Targets, namespace: str, keys: Sequence[Key], threshold: int) -> None:
    """Delegate to a VO, or change its keys."""
    roles = {**delegated(targets), namespace: bins.delegation(namespace, keys, threshold)}
    set_delegations(targets, roles, {**keys_of(targets), **{key.keyid: key for key in keys}})


def set_delegations(targets: Targets, roles: Mapping[str, DelegatedRole], keys: Mapping[str, Key]) -> None:
    """Replace all delegations; keys that nobody uses are dropped."""
    used = {key_id for role in roles.values() for key_id in role.keyids}
    targets.delegations = Delegations({i: key for i, key in keys.items() if i in used}, dict(roles))


def keys_of(targets: Targets) -> Mapping[str, Key]:
    """Return the keys of all delegations, by key id."""
    return targets.delegations.keys if targets.delegations is not None else {}


def add_package(role: Targets, package: Package) -> None:
    """Add the entry of a package; raises AlreadyPublished or UsageError."""
    signed = encoded(package)
    if signed.path in role.targets:
        raise AlreadyPublished(
            f"{package.id} for {package.platform} is published already", remedy="give the change a new version"
        )
    role.targets[signed.path] = target_of(signed)


def encoded(package: Package) -> entry.Entry:
    """Return the entry of a package; raises UsageError where a field breaks the format."""
    try:
        return entry.encode(package)
    except entry.EntryError as error:
        raise UsageError(f"{package.id} cannot be published: {error}") from error


def target_of(signed: entry.Entry) -> TargetFile:
    """Return an entry of ours as a TUF target."""
    fields = {"custom": dict(signed.custom)}
    return TargetFile(signed.size_bytes, {"sha256": signed.sha256}, signed.path, fields)


def entry_of(path: str, target: TargetFile) -> entry.Entry:
    """Return a TUF target as an entry of ours; what is missing is empty, and refused by `entry.decode`."""
    custom = target.custom if isinstance(target.custom, dict) else {}
    return entry.Entry(path, target.length, str(target.hashes.get("sha256", "")), custom)


def package_of(path: str, target: TargetFile) -> Package | None:
    """Return the package of a target, or `None` where its entry is malformed."""
    try:
        return entry.decode(entry_of(path, target))
    except entry.EntryError:
        return None
