"""Which machines a job wants, in HTCondor's terms: AliEn's Requirements, cached packages, the order among machines.

AliEn's expressions speak of `other.X` and put the list first in `member(list, item)`; HTCondor's speak of `TARGET.X`
and put the list last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobagent.condor.language import attributes
from jobagent.condor.language.expressions import scan
from jobagent.condor.language.lexemes import Lexeme, Source, quote, written
from jobagent.model import PackageSpec, owner_of

CACHED = f"TARGET.{attributes.MACHINE_CACHED_PACKAGES}"
READY = f"TARGET.{attributes.MACHINE_READY} =?= true"

# AliEn's attributes of a computing element that HTCondor's machines have under another name.
_MACHINE: Mapping[str, str] = {
    "installedpackages": CACHED,
    "packages": f"(TARGET.Packages ?: MY.{attributes.PACKAGES})",  # what a job asks for, its node can get
    "localdiskspace": "TARGET.Disk",  # both count KiB
}
# What every machine says of itself; anything else must be set by its site.
_EVERYWHERE = frozenset({"arch", "opsys", "opsysandver", "opsysmajorver", "microarch", "hasfiletransfer", "machine"})
_EVERYWHERE |= {"cpus", "totalcpus", "memory", "totalmemory", "disk", "totaldisk", "gpus", "name", "condorversion"}
_PATTERN_SIGNS = re.compile(r"[.+]")


@dataclass(frozen=True, slots=True)
class Matching:
    """An expression about machines, and what is to be warned of."""

    text: str
    warnings: tuple[str, ...] = ()


def translated(requirements: str) -> Matching:
    """Return an expression of AliEn's in HTCondor's terms; it must have passed `expressions.scan`."""
    warnings: list[str] = []
    words = _translated(list(scan(Source(requirements), 0, until="").words), warnings)
    return Matching(written(words), tuple(dict.fromkeys(warnings)))


def requirements_of(requirements: str, packages: Sequence[PackageSpec], *, is_preinstalled_only: bool) -> str:
    """Return the whole requirement: the job's own (in HTCondor's terms), an agent that is ready, cached packages."""
    parts = [f"({requirements})"] if requirements else []
    if packages:
        parts.append(f"({READY})")
    if is_preinstalled_only:
        parts += [is_cached(package) for package in packages]
    return " && ".join(parts)


def rank_of(packages: Sequence[PackageSpec]) -> str:
    """Return the number of the job's packages that a machine has cached, as an expression; empty without packages."""
    return " + ".join(f"ifThenElse({is_cached(package)} ?: false, 1, 0)" for package in packages)


def is_cached(package: PackageSpec) -> str:
    """Return the test that a machine has `package`, whichever version and owner where the job leaves them open.

    No backslash is needed in it: HTCondor's submit language reads those in another way than ClassAds.
    """
    if package.namespace and package.version:
        return f"member({quote(str(package))}, {CACHED})"
    owner = _pattern(owner_of(package.namespace)) if package.namespace else "[^@]+"
    version = f"{_pattern(package.version)}$" if package.version else ""
    return f"regexpMember({quote(f'^{owner}@{_pattern(package.name)}::{version}')}, {CACHED})"


def _pattern(text: str) -> str:
    return _PATTERN_SIGNS.sub(lambda sign: f"[{sign[0]}]", text)


def _translated(words: list[Lexeme], warnings: list[str]) -> list[Lexeme]:
    out: list[Lexeme] = []
    position = 0
    while position < len(words):
        word = words[position]
        following = words[position + 1].text if position + 1 < len(words) else ""
        if word.keyword == "member" and following == "(":
            end = _closing(words, position + 1)
            first, second = _arguments(words[position + 2 : end])
            if _is_machine_list(first) and second:
                first, second = second, first
            inside = [*_translated(first, warnings), _operator(","), *_translated(second, warnings)]
            out += [word, _operator("("), *(inside if second else _translated(first, warnings)), _operator(")")]
            position = end + 1
        elif word.keyword in {"other", "self"} and following == "." and position + 2 < len(words):
            out += _machine(words[position + 2], warnings) if word.keyword == "other" else _mine(words[position + 2])
            position += 3
        else:
            out.append(word)
            position += 1
    return out


def _machine(name: Lexeme, warnings: list[str]) -> list[Lexeme]:
    key = name.text.lower()
    if key not in _EVERYWHERE and key not in _MACHINE and not key.startswith("jobagent"):
        warnings.append(f"Requirements asks machines for {name.text}: only those whose site sets it match")
    return [Lexeme("name", _MACHINE.get(key, f"TARGET.{name.text}"), name.offset)]


def _mine(name: Lexeme) -> list[Lexeme]:
    return [Lexeme("name", f"MY.{name.text}", name.offset)]


def _is_machine_list(words: Sequence[Lexeme]) -> bool:
    """Whether words are `other.X`: in AliEn's order of `member` the list."""
    return len(words) == 3 and words[0].keyword == "other" and words[1].text == "."


def _arguments(words: list[Lexeme]) -> tuple[list[Lexeme], list[Lexeme]]:
    """Cut at the first comma outside brackets."""
    depth = 0
    for position, word in enumerate(words):
        if word.kind != "operator":
            continue
        depth += (word.text in "([{") - (word.text in ")]}")
        if word.text == "," and not depth:
            return words[:position], words[position + 1 :]
    return words, []


def _closing(words: Sequence[Lexeme], opened: int) -> int:
    depth = 0
    for position in range(opened, len(words)):
        word = words[position]
        if word.kind == "operator":
            depth += (word.text in "([{") - (word.text in ")]}")
            if not depth:
                return position
    return len(words) - 1


def _operator(text: str) -> Lexeme:
    return Lexeme("operator", text, 0)
