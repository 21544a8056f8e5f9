"""`etc/profile.d/init.sh` as alibuild writes it: evaluated, not run.

alibuild writes a small part of the shell's language: assignments with quotes and the simple expansions.  Reading it
here costs microseconds instead of a shell per package, and lets no code of a VO run as the node's user.  Whatever
else stands in such a file is `NotUnderstood`, and left to `scripts`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jobagent.plugin import EnvironmentChange
from jobagent_environment.differences import MARK, changes_of, mark_of
from jobagent_environment.places import WORK_MARK, NotUnderstood, Place, known_variables, placed

FILE = "etc/profile.d/init.sh"
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_DEFAULT = re.compile(rf': "?\$\{{(?P<name>{_NAME}):?=(?P<word>[^}}"$`\\]*)\}}"?')
_DEPENDENCY = re.compile(r"\[ -n \S+ \] \|\| (\.|source) .+")
_EXPORT = re.compile(rf"(export )?(?P<name>{_NAME})=(?P<word>.*)")
_VARIABLE = re.compile(rf"\$(?P<plain>{_NAME})|\$\{{(?P<name>{_NAME})((?P<how>:?[-+])(?P<word>[^}}]*))?\}}")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:,@%+=^~-]+")
_BUILD_ONLY = "RECC_"  # a compiler cache's variables


def changes(text: str, own: Place, dependencies: Sequence[Place]) -> list[EnvironmentChange]:
    """Return what the script does.

    Raises:
        NotUnderstood: It has more than what alibuild writes.
    """
    if WORK_MARK in text or MARK in text or "\0" in text:
        raise NotUnderstood("it has a control character")
    variables = {**known_variables(dependencies), "WORK_DIR": WORK_MARK}
    exported: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            _run(line.strip(), variables, exported, own)
        except NotUnderstood as error:
            raise NotUnderstood(f"line {number}: {error}") from error
    places = (own, *dependencies)
    found: list[EnvironmentChange] = []
    for name, value in exported.items():
        if not name.startswith(_BUILD_ONLY):
            found += changes_of(name, placed(value, places))
    return found


def _run(line: str, variables: dict[str, str], exported: dict[str, str], own: Place) -> None:
    if not line or line.startswith("#") or _DEPENDENCY.fullmatch(line):
        return
    if match := _DEFAULT.fullmatch(line):
        variables.setdefault(match["name"], match["word"])
    elif match := _EXPORT.fullmatch(line):
        value = _word(match["word"], variables)
        variables[match["name"]] = value
        if match[1]:
            exported[match["name"]] = value
    else:
        raise NotUnderstood(f"{line[:80]!r}")


def _word(text: str, variables: Mapping[str, str]) -> str:
    """Evaluate one word: pieces with and without quotes."""
    result: list[str] = []
    while text:
        if text[0] == "'":
            end = text.find("'", 1)
            piece, rest = (text[1:end], text[end + 1 :]) if end > 0 else ("", "")
            result.append(piece)
        elif text[0] == '"':
            end = text.find('"', 1)
            piece, rest = (text[1:end], text[end + 1 :]) if end > 0 else ("", "")
            result.append(_expanded(piece, variables))
        elif text[0] == "$" and (match := _VARIABLE.match(text)):
            end, rest = match.end(), text[match.end() :]
            result.append(_value(match, variables))
        elif match := _PLAIN_WORD.match(text):
            end, rest = match.end(), text[match.end() :]
            result.append(match[0])
        else:
            raise NotUnderstood(f"{text[:80]!r}")
        if end <= 0:
            raise NotUnderstood("a quote is not closed")
        text = rest
    return "".join(result)


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    if "`" in text or "\\" in text or "$(" in text:
        raise NotUnderstood(f"{text[:80]!r} runs something or escapes something")
    result = _VARIABLE.sub(lambda match: _value(match, variables), text)
    if "$" in result:
        raise NotUnderstood(f"{text[:80]!r}")
    return result


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    """The value of an expansion; a variable that nobody set has the mark of what the node has."""
    name = match["plain"] or match["name"]
    value = variables.get(name, mark_of(name))
    if match["how"] in {"+", ":+"}:  # the mark counts as set: an empty list does not matter
        return _expanded(match["word"], variables)
    return value
