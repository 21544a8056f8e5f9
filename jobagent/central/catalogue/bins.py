"""How the entries of one VO are divided among signed roles, so that a client loads little of a large VO.

The role `<namespace>` holds all entries while it is small.  When a role passes its limits it hands its entries to 16
roles by the first digit of a path's bin, later to 256 by the first two; the paths never change.  A bin role is named
`<namespace>--<digits>`, and so no namespace may hold `--`.

Pure: counts and names in, names and delegations out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Targets

from jobagent import entry
from jobagent.errors import UsageError

MAX_TARGETS = 400  # a role of 400 entries has about 400 KB and verifies in 10 ms
MAX_ROLE_BYTES = 2_000_000  # clients refuse metadata of more than 5 MB
MAX_DIGITS = 2  # 256 bins: 100,000 packages of one VO
SEPARATOR = "--"
RESERVED = frozenset({"root", "targets", "snapshot", "timestamp"})
_HEX = "0123456789abcdef"


def checked_namespace(namespace: str) -> str:
    """Return `namespace`, or raise UsageError where no VO may have that name."""
    try:
        entry.checked_namespace(namespace)
    except entry.EntryError as error:
        raise UsageError(f"VO name: {error}") from error
    if namespace in RESERVED or SEPARATOR in namespace:
        raise UsageError(f"VO name {namespace} is reserved", remedy="choose a name without -- that is no role of TUF")
    return namespace


def namespace_of(role: str) -> str:
    """Return the namespace that a role, a bin or not, belongs to."""
    return role.partition(SEPARATOR)[0]


def role_of(namespace: str, name: str, digits: int) -> str:
    """Return the role that holds the entries of a package name."""
    return f"{namespace}{SEPARATOR}{entry.name_bin(name)[:digits]}" if digits else namespace


def digits_of(role: Targets) -> int:
    """Return how many digits of the bin the namespace role is divided by; 0 where it is not divided."""
    if role.delegations is None or not role.delegations.roles:
        return 0
    first = next(iter(role.delegations.roles))
    return len(first.partition(SEPARATOR)[2])


def needs_division(role: Targets, digits: int) -> bool:
    """Whether a role has grown so large that its namespace must be divided further."""
    if digits >= MAX_DIGITS or len(role.targets) < 2:
        return False
    return len(role.targets) > MAX_TARGETS or len(role.targets) * entry.MAX_ENTRY_BYTES > MAX_ROLE_BYTES < _size(role)


def delegation(role: str, keys: Iterable[Key], threshold: int) -> DelegatedRole:
    """Return the delegation of a namespace or bin role, for exactly its own paths."""
    namespace, _, digits = role.partition(SEPARATOR)
    pattern = f"{namespace}/{digits}*/*/*/*"
    return DelegatedRole(role, [k.keyid for k in keys], threshold, terminating=True, paths=[pattern])


def delegations(namespace: str, digits: int, keys: Mapping[str, Key], threshold: int) -> Delegations:
    """Return the delegations of a namespace role to all its bins, with the namespace's own keys."""
    prefixes = [""]
    for _ in range(digits):
        prefixes = [prefix + digit for prefix in prefixes for digit in _HEX]
    names = [f"{namespace}{SEPARATOR}{prefix}" for prefix in prefixes]
    return Delegations(dict(keys), {name: delegation(name, keys.values(), threshold) for name in names})


def _size(role: Targets) -> int:
    return len(str(role.to_dict()))
