"""What a script did to the environment, as changes that can be applied to any other environment.

Where a variable's value on the node is not known, a mark stands for it; what stands before the mark in the end was
prepended, what stands behind it appended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jobagent.plugin import EnvironmentAction, EnvironmentChange
from jobagent_environment.places import NotUnderstood

MARK = "/.jobagent-before/"  # a path, so that scripts take it for one
LIST_VARIABLES = (
    "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "MANPATH", "INFOPATH", "PKG_CONFIG_PATH", "CMAKE_PREFIX_PATH",
    "ROOT_INCLUDE_PATH", "ROOT_LIBRARY_PATH", "ROOT_DYN_PATH", "CPATH", "LIBRARY_PATH", "PERL5LIB", "XDG_DATA_DIRS",
    "CLASSPATH", "LHAPDF_DATA_PATH", "RIVET_ANALYSIS_PATH", "RIVET_DATA_PATH",
)  # fmt: skip
_LIST_ENDINGS = ("PATH", "_DIRS", "5LIB")


def mark_of(name: str) -> str:
    """Return what stands for the value of a variable on the node."""
    return MARK + name


def changes_of(name: str, value: str) -> list[EnvironmentChange]:
    """Return what turns the value on the node into `value`, in which its mark stands for that value.

    Raises:
        NotUnderstood: The old value is there twice, or within something else, or it is another variable's.
    """
    parts = value.split(":")
    own = mark_of(name)
    if MARK not in value:
        return [EnvironmentChange(EnvironmentAction.SET, name, value)]
    if parts.count(own) != 1 or value.count(MARK) != 1:
        raise NotUnderstood(f"it makes {name} of old values in a way that is no list")
    at = parts.index(own)
    return _around(name, parts[:at], parts[at + 1 :])


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> list[EnvironmentChange]:
    """Return what a script that was run has changed and added.

    A variable that it removed cannot be expressed and stays as it is.  A new one whose name is that of a list is
    prepended to, so that packages do not undo each other.
    """
    changes: list[EnvironmentChange] = []
    for name, value in after.items():
        if before.get(name) == value:
            continue
        known = set(before.get(name, "").split(":"))
        parts = value.split(":")
        own = mark_of(name)
        at = parts.index(own) if own in parts else len(parts)
        if own in parts or (name not in before and name.endswith(_LIST_ENDINGS)):
            changes += _around(name, _new(parts[:at], known), _new(parts[at + 1 :], known))
        else:
            changes.append(EnvironmentChange(EnvironmentAction.SET, name, ":".join(_new(parts, ()))))
    return changes


def _new(parts: Iterable[str], known: Iterable[str]) -> list[str]:
    return [part for part in parts if not part.startswith(MARK) and part not in known]


def _around(name: str, front: list[str], back: list[str]) -> list[EnvironmentChange]:
    prepended = [EnvironmentChange(EnvironmentAction.PREPEND, name, part) for part in reversed(front) if part]
    return prepended + [EnvironmentChange(EnvironmentAction.APPEND, name, part) for part in back if part]
