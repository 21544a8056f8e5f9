"""What a package is made from: a source says its name and version at once, and makes its content when asked.

Sources are wheels, a directory, a tarball, a data file, the running interpreter, and alibuild's output.  They know
nothing of VOs, torrents and signatures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from jobagent.central.packaging.provenance import Origin
from jobagent.central.packaging.relocatable import Report
from jobagent.model import EnvironmentAction, EnvironmentChange, PackageSpec


@dataclass(frozen=True, slots=True)
class Content:
    """A tree (or one data file) that is ready to be packed, and what its source knows about it.

    `requires` without a namespace are of the namespace that the package is published in.
    """

    path: Path
    origin: Origin
    requires: Sequence[PackageSpec] = ()
    environment: Sequence[EnvironmentChange] = ()
    description: str = ""
    licence: str = ""
    is_data: bool = False


class Source(Protocol):
    """Something that a package can be made from."""

    @property
    def name(self) -> str:
        """Name of the package, unless the publisher gives another."""

    @property
    def version(self) -> str:
        """Version of the package, unless the publisher gives another."""

    def make(self, work: Path, report: Report) -> Content:
        """Make the content below the empty directory `work`; `report` gets what the publisher should know.

        Raises:
            PublishError: It cannot be made.
        """


@dataclass(frozen=True, slots=True)
class Given:
    """What a publisher says about a package; it comes after what the source says."""

    requires: Sequence[PackageSpec] = ()
    environment: Sequence[EnvironmentChange] = ()
    description: str = ""
    licence: str = ""
    pfns: Sequence[str] = ()
    provenance: bytes = field(default=b"", repr=False)


def prepend(name: str, value: str) -> EnvironmentChange:
    """Return the change that puts `value` in front of a list."""
    return EnvironmentChange(EnvironmentAction.PREPEND, name, value)


def assign(name: str, value: str) -> EnvironmentChange:
    """Return the change that gives a variable its value."""
    return EnvironmentChange(EnvironmentAction.SET, name, value)


def usual_changes(tree: Path) -> list[EnvironmentChange]:
    """Return what a tree in the usual layout needs: its programs and libraries found."""
    lists = {"PATH": "bin", "LD_LIBRARY_PATH": "lib", "PKG_CONFIG_PATH": "lib/pkgconfig", "MANPATH": "share/man"}
    return [prepend(name, f"{{root}}/{part}") for name, part in lists.items() if (tree / part).is_dir()]
