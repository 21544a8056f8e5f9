"""Modulefiles of Environment Modules: the part of Tcl that they are mostly made of, evaluated and not run.

Understood are `set`, `setenv`, `prepend-path`, `append-path`, and what only informs; dependencies come from the
catalogue, so `module load` and `prereq` have nothing to do.  Everything else is `NotUnderstood`: half an environment
is worse than none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobagent.plugin import EnvironmentChange
from jobagent_environment.differences import MARK, changes_of, mark_of
from jobagent_environment.places import WORK_MARK, NotUnderstood, Place, known_variables, placed

DIRECTORY = "etc/modulefiles"
_INFORMING = frozenset({"module-whatis", "module", "prereq", "conflict", "puts", "global", "module-version"})
_REFERENCE = re.compile(r"\$(?:::)?env\((?P<env>\w+)\)|\$\{(?P<braced>\w+)\}|\$(?P<plain>\w+)")
_TOKEN = re.compile(r'"(?P<quoted>[^"]*)"|\{(?P<braced>[^{}]*)\}|(?P<bare>[^\s"{}\[\];]+)')
_COMMANDS = {"[uname sysname]": os.uname().sysname, "[uname machine]": os.uname().machine}


def find(tree: Path, name: str) -> Path | None:
    """Return the modulefile of a package: the one of its name, or the only one."""
    try:
        files = sorted(path for path in (tree / DIRECTORY).iterdir() if path.is_file())
    except OSError:
        return None
    return next((path for path in files if path.name == name), files[0] if len(files) == 1 else None)


def changes(text: str, own: Place, dependencies: Sequence[Place]) -> list[EnvironmentChange]:
    """Return what the modulefile does.

    Raises:
        NotUnderstood: It has more than the part of Tcl that is read here.
    """
    if WORK_MARK in text or MARK in text or "\0" in text:
        raise NotUnderstood("it has a control character")
    environment = {**known_variables(dependencies), "BASEDIR": f"{WORK_MARK}/{own.architecture or 'any'}"}
    variables: dict[str, str] = {}
    values: dict[str, str] = {}
    depth = 0
    for number, raw in enumerate(text.replace("\\\n", " ").splitlines(), 1):
        line = raw.strip()
        if depth or line.startswith("proc "):  # a procedure only informs: nothing calls it when a module is loaded
            depth += line.count("{") - line.count("}")
            continue
        try:
            _run(line, variables, environment, values)
        except NotUnderstood as error:
            raise NotUnderstood(f"line {number}: {error}") from error
    places = (own, *dependencies)
    return [change for name, value in values.items() for change in changes_of(name, placed(value, places))]


def _run(line: str, variables: dict[str, str], environment: Mapping[str, str], values: dict[str, str]) -> None:
    if not line or line.startswith("#"):
        return
    command, _, rest = line.partition(" ")
    if command in _INFORMING:
        return
    words = _words(rest, variables, environment)
    match command, words:
        case "set", [name, value]:
            variables[name] = value
        case "setenv", [name, value]:
            values[name] = value
        case "prepend-path", [name, value]:
            values[name] = f"{value}:{values.get(name, mark_of(name))}"
        case "append-path", [name, value]:
            values[name] = f"{values.get(name, mark_of(name))}:{value}"
        case _:
            raise NotUnderstood(f"{line[:80]!r}")


def _words(text: str, variables: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    for command, result in _COMMANDS.items():
        text = text.replace(command, result)
    words: list[str] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotUnderstood(f"{text[position : position + 80]!r}")
        literal = match["braced"]
        words.append(
            literal
            if literal is not None
            else _expanded(match["quoted"] or match["bare"] or "", variables, environment)
        )
        position = match.end()
    return words


def _expanded(text: str, variables: Mapping[str, str], environment: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        source, name = (environment, match["env"]) if match["env"] else (variables, match["braced"] or match["plain"])
        if name not in source:
            raise NotUnderstood(f"it uses {match[0]}, which nothing sets")
        return source[name]

    if "[" in text or "\\" in text:
        raise NotUnderstood(f"{text[:80]!r}")
    return _REFERENCE.sub(value, text)
