"""Where set-up scripts believe packages to be, and where they are.

alibuild's scripts and modulefiles name everything below one work directory, `$WORK_DIR/<arch>/<Name>/<version>`; on
a node each package has a tree of its own.  Scripts are evaluated with a mark for the work directory, which is
replaced afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jobagent.plugin import Installed

WORK_MARK = "\x01"  # cannot stand in a script's own text: such scripts are refused
MAX_META_BYTES = 1 << 20
_PLACE = re.compile(WORK_MARK + r"/[^/:]+/(?P<name>[^/:]+)/(?P<version>[^/:]+)")


class NotUnderstood(Exception):
    """A script cannot be evaluated without running it; the message says which line."""


class Place(NamedTuple):
    """One package as its scripts call it.  `architecture` may be empty where nothing says it."""

    name: str
    version: str
    architecture: str
    tree: Path

    @classmethod
    def of(cls, installed: Installed) -> Place:
        """Return the names that the build gave it, else those of the catalogue."""
        meta = _meta(installed.tree)
        package = meta.get("package")
        if isinstance(package, dict) and "name" in package:
            version = f"{package.get('version')}-{package.get('revision')}"
            return cls(str(package["name"]), version, str(meta.get("architecture", "")), installed.tree)
        return cls(installed.package.id.name, installed.package.id.version, "", installed.tree)

    @property
    def word(self) -> str:
        """The name in variables: `Base-tool` is `BASE_TOOL`."""
        return re.sub(r"[^A-Z0-9_]", "_", self.name.upper())


def placed(value: str, places: Sequence[Place]) -> str:
    """Return `value` with every marked path replaced by that of the installed tree.

    Raises:
        NotUnderstood: It names a package that the job has not.
    """
    trees = {(place.name, place.version): str(place.tree) for place in places}

    def tree_of(match: re.Match[str]) -> str:
        tree = trees.get((match["name"], match["version"]))
        if tree is None:
            raise NotUnderstood(f"it names {match['name']}/{match['version']}, which is no dependency")
        return tree

    result = _PLACE.sub(tree_of, value)
    if WORK_MARK in result:
        raise NotUnderstood("it names the work directory itself")
    return result


def known_variables(places: Sequence[Place]) -> Mapping[str, str]:
    """Return what the scripts of dependencies have set by the time that a package's own runs."""
    variables = {}
    for place in places:
        version, _, revision = place.version.rpartition("-")
        variables[f"{place.word}_ROOT"] = str(place.tree)
        variables[f"{place.word}_VERSION"] = version or place.version
        variables[f"{place.word}_REVISION"] = revision or "1"
    return variables


def _meta(tree: Path) -> Mapping[str, object]:
    try:
        with open(tree / ".meta.json", "rb") as stream:
            document = json.loads(stream.read(MAX_META_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
