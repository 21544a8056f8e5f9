"""A job's environment in HTCondor's own notation: the `Environment` attribute (V2) and the old `Env` (V1).

V2: words separated by blanks, `NAME=value`; single quotes protect blanks, a doubled quote inside them is one quote.
V1: `NAME=value` separated by `;`, no quoting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jobagent.condor.language import longform

_PROTECTED = re.compile(r"'((?:[^']|'')*)'")
_WORD = re.compile(r"(?:[^\s']|'(?:[^']|'')*')+")


def of_job(ad: bytes) -> dict[str, str]:
    """Return the variables that a long-form job ad sets; empty where it sets none."""
    v2 = longform.string_attribute(ad, "Environment")
    if v2 is not None:
        return parse(v2)
    v1 = longform.string_attribute(ad, "Env")
    return parse_v1(v1, longform.string_attribute(ad, "EnvDelim") or ";") if v1 else {}


def parse(text: str) -> dict[str, str]:
    """Return the variables of a V2 string; a word without `=` is left out, as the starter does."""
    variables = {}
    for word in _words(text):
        name, equals, value = word.partition("=")
        if name and equals:
            variables[name] = value
    return variables


def parse_v1(text: str, delimiter: str = ";") -> dict[str, str]:
    """Return the variables of a V1 string."""
    pairs = (item.partition("=") for item in text.split(delimiter))
    return {name.strip(): value for name, equals, value in pairs if name.strip() and equals}


def render(variables: Mapping[str, str]) -> str:
    """Return the V2 string of the variables."""
    return " ".join(_quoted(f"{name}={value}") for name, value in variables.items())


def _quoted(word: str) -> str:
    if "'" not in word and not re.search(r"\s", word):
        return word
    return "'" + word.replace("'", "''") + "'"


def _words(text: str) -> list[str]:
    return [_PROTECTED.sub(lambda part: part[1].replace("''", "'"), word) for word in _WORD.findall(text)]
