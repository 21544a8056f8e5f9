"""Entry points of what is installed, read from the disk.

`importlib.metadata` does the same and more, but importing it (mail, zip and CSV readers) and asking it takes longer
than all else between the start of an agent and its first phase.  Read here is what installers write: directories
`*.dist-info` and `*.egg-info` with a file `entry_points.txt` on the module path.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_SUFFIXES = (".dist-info", ".egg-info")


class EntryPoint(NamedTuple):
    """One name that a distribution gives to one of its modules, or to an attribute of it (`module:attribute`)."""

    name: str
    value: str
    distribution: str

    def load(self) -> object:
        """Import what it names; raises whatever the import raises."""
        module, _, attribute = self.value.partition(":")
        loaded: object = importlib.import_module(module.strip())
        for part in filter(None, attribute.strip().split(".")):
            loaded = getattr(loaded, part)
        return loaded


def entry_points(group: str, path: Sequence[str] | None = None) -> list[EntryPoint]:
    """Return the entry points of a group; of two distributions with one name the first on the module path stands."""
    found: dict[str, list[EntryPoint]] = {}
    for directory, distribution in _distributions(sys.path if path is None else path):
        if distribution in found:
            continue
        try:
            with open(f"{directory}/entry_points.txt", encoding="utf-8") as stream:
                text = stream.read()
        except (OSError, UnicodeDecodeError):
            text = ""
        found[distribution] = list(_parse(text, group, distribution)) if f"[{group}]" in text else []
    return [point for points in found.values() for point in points]


def _distributions(path: Sequence[str]) -> Iterator[tuple[str, str]]:
    for place in dict.fromkeys(path):
        try:
            names = sorted(entry.name for entry in os.scandir(place or ".") if entry.name.endswith(_SUFFIXES))
        except OSError:  # zip files and directories that are not there
            continue
        for name in names:
            yield f"{place or '.'}/{name}", name.rpartition(".")[0].partition("-")[0].replace("_", "-").lower()


def _parse(text: str, group: str, distribution: str) -> Iterator[EntryPoint]:
    section = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif section == group and "=" in line and line[0] not in "#;":
            name, _, value = line.partition("=")
            yield EntryPoint(name.strip(), value.partition("[")[0].strip(), distribution)
