"""A job's arguments in HTCondor's notations.

V2 (the `Arguments` attribute): words separated by blanks; single quotes protect blanks, a doubled quote inside them
is one quote.  V1 (the old `Args`): words separated by blanks, no quoting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobagent.errors import JobSyntaxError

_WORDS = re.compile(r"(\s*)(\S+)")
_SPECIAL = re.compile(r"[\s']")


def split(text: str) -> tuple[str, ...]:
    """Return the words of a V2 string; raises JobSyntaxError where a quote is not closed."""
    words: list[str] = []
    # Odd pieces are inside quotes; a doubled quote shows as an empty piece between two quoted ones.
    pieces = text.split("'")
    if len(pieces) % 2 == 0:
        raise JobSyntaxError("a single quote in the arguments is not closed", remedy="double it to mean itself")
    is_open = False  # whether the next characters belong to the last word
    for number, piece in enumerate(pieces):
        if number % 2:
            is_doubled = number > 1 and pieces[number - 1] == ""
            _add(words, ("'" if is_doubled else "") + piece, is_open=is_open)
            is_open = True
            continue
        for blank, word in _WORDS.findall(piece):
            _add(words, word, is_open=is_open and not blank)
            is_open = True
        if piece and piece[-1].isspace():
            is_open = False
    return tuple(words)


def _add(words: list[str], text: str, *, is_open: bool) -> None:
    if is_open:
        words[-1] += text
    else:
        words.append(text)


def split_v1(text: str) -> tuple[str, ...]:
    """Return the words of a V1 string."""
    return tuple(text.split())


def join(arguments: Sequence[str]) -> str:
    """Return the V2 string of `arguments`."""
    return " ".join("'" + a.replace("'", "''") + "'" if not a or _SPECIAL.search(a) else a for a in arguments)
