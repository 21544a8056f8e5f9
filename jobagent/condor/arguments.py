"""A job's arguments in HTCondor's notations.

V2 (the `Arguments` attribute): words separated by blanks; single quotes protect blanks, a doubled quote inside them
is one quote.  V1 (the old `Args`): words separated by blanks, no quoting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobagent.errors import JobSyntaxError

_WORD = re.compile(r"((?:[^\s']++|'(?:[^']++|'')*+')++)(\s*+)")
_PROTECTED = re.compile(r"'((?:[^']++|'')*+)'")
_SPECIAL = re.compile(r"[\s']")


def split(text: str) -> tuple[str, ...]:
    """Return the words of a V2 string; raises JobSyntaxError where a quote is not closed."""
    words: list[str] = []
    position = len(text) - len(text.lstrip())
    while position < len(text):
        found = _WORD.match(text, position)
        if found is None or (found.end() < len(text) and not found[2]):
            raise JobSyntaxError("a single quote in the arguments is not closed", remedy="double it to mean itself")
        words.append(_PROTECTED.sub(lambda part: part[1].replace("''", "'"), found[1]))
        position = found.end()
    return tuple(words)


def split_v1(text: str) -> tuple[str, ...]:
    """Return the words of a V1 string."""
    return tuple(text.split())


def join(arguments: Sequence[str]) -> str:
    """Return the V2 string of `arguments`."""
    return " ".join("'" + a.replace("'", "''") + "'" if not a or _SPECIAL.search(a) else a for a in arguments)
