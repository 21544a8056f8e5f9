"""Which versions of the roles a new snapshot may name: the newest that fit together.

Managers sign at their own pace, so a directory may hold a role that its delegation does not vouch for yet, or bins
without the namespace role that divides it.  A new snapshot takes the newest `targets` under which every VO has a
verified role with all its bins, and says why a newer one had to wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tuf.api.metadata import Root, Targets

from jobagent.central.catalogue import bins
from jobagent.central.catalogue.chain import Delegator, delegated, verified
from jobagent.central.catalogue.shelf import Shelf
from jobagent.errors import ManagerError


@dataclass(slots=True)
class Adoption:
    """The versions that fit together, and in words what was left out."""

    versions: dict[str, int]
    left_out: list[str] = field(default_factory=list)


def adopt(shelf: Shelf, root: Root, published: Mapping[str, int]) -> Adoption:
    """Choose versions for the next snapshot; `published` are those of the last one.

    Raises:
        ManagerError: Not even the published versions fit together under `root`.
    """
    chooser = _Chooser(shelf, published)
    versions = chooser.role(root, "targets")
    if versions is None:
        raise ManagerError(
            f"no consistent state in {shelf.directory}: {'; '.join(chooser.left_out) or 'no targets metadata'}",
            remedy="jobagent catalogue check",
        )
    return Adoption({**published, **versions}, chooser.left_out)


class _Chooser:
    def __init__(self, shelf: Shelf, published: Mapping[str, int]) -> None:
        self._shelf = shelf
        self._published = published
        self._on_disk = shelf.versions()
        self.left_out: list[str] = []

    def role(self, delegator: Delegator, role: str, *, is_same_above: bool = False) -> dict[str, int] | None:
        """Return the newest versions of `role` and of all below it that fit together.

        `is_same_above` says that `delegator` is the one that readers see now: what it vouched for then it does now,
        so only what is newer has to be read.
        """
        for version in self._candidates(role):
            is_same = is_same_above and version == self._published.get(role)
            if is_same and not self._has_news_below(role):
                return {role: version}
            try:
                metadata = verified(self._shelf, delegator, role, version)
            except ManagerError as error:
                self.left_out.append(error.cause_line)
                continue
            below = self._below(metadata.signed, role, is_same_above=version == self._published.get(role))
            if below is not None:
                return {role: version, **below}
            self.left_out.append(f"{role} v{version} waits for what it delegates to")
        return None

    def _below(self, targets: Targets, role: str, *, is_same_above: bool) -> dict[str, int] | None:
        found: dict[str, int] = {}
        for name in delegated(targets):
            if role != "targets" and not name.startswith(role + bins.SEPARATOR):
                self.left_out.append(f"{role} delegates to {name}, which is not its bin")
                return None
            chosen = self.role(targets, name, is_same_above=is_same_above)
            if chosen is None and (role != "targets" or name in self._published):
                return None
            found |= chosen or {}  # a VO that was added and has not published yet has no role
        return found

    def _has_news_below(self, role: str) -> bool:
        below = role + bins.SEPARATOR
        return any(
            versions[0] > self._published.get(name, 0)
            for name, versions in self._on_disk.items()
            if name.startswith(below)
        )

    def _candidates(self, role: str) -> Iterator[int]:
        for version in self._on_disk.get(role, ()):
            if version >= self._published.get(role, 0):
                yield version
