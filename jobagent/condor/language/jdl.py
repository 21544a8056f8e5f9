"""AliEn's job description language: text → Job.

The language is ClassAd statements with `#` comment lines, lists that are ordered sets, and arguments: `$1 … $n` and
`$HOME` are put in at submission.  An argument can only ever become (part of) one string: it cannot add attributes.
What the attributes mean is in `jobagent.condor.language.alien`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jobagent.condor.language import alien
from jobagent.condor.language.lexemes import MAX_TEXT, Source, quote
from jobagent.condor.language.statements import Rules, read
from jobagent.errors import JobSyntaxError
from jobagent.model import Job

DIALECT = "jdl"
MAX_ARGUMENT = 100_000  # characters; Linux itself allows 128 kB
_PLACE = re.compile(r"\\.|\$([1-9][0-9]{0,5}|HOME\b)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?")


def parse(text: str, *, arguments: Sequence[str] = (), home: str = "", base_directory: Path = Path()) -> Job:
    """Return the job that `text` describes, with `arguments` for `$1 … $n` and `home` for `$HOME`.

    Raises:
        JobSyntaxError: With line, column and what was expected; also for too few arguments.
    """
    source = Source(text, has_hash_comments=True)
    places = _Places(source, arguments, home)
    rules = Rules(
        substitute=places.fill, has_sets=True, is_quoted=True, reference_keys=frozenset({"requirements", "rank"})
    )
    statements = read(source, rules)
    places.check()
    return alien.job_of(statements, base_directory=base_directory, warnings=places.warnings())


class _Places:
    """Fills `$n` and `$HOME` and remembers what was used and what was missing."""

    def __init__(self, source: Source, arguments: Sequence[str], home: str) -> None:
        self._source = source
        self._arguments = arguments
        self._home = home
        self._highest = 0
        self._filled = 0
        self._first_missing = -1
        for number, argument in enumerate(arguments, 1):
            if len(argument) > MAX_ARGUMENT or not argument.isprintable():
                raise JobSyntaxError(f"argument {number} is too long or has unprintable characters")

    def fill(self, text: str, offset: int) -> str:
        """Return a string lexeme with its places filled, or the literal that a `$n` outside strings stands for."""
        if not text.startswith('"'):
            value = self._value(text[1:], offset)
            return value if _NUMBER.fullmatch(value) else quote(value)
        return _PLACE.sub(lambda found: self._inside(found, offset), text) if "$" in text else text

    def check(self) -> None:
        """Raise JobSyntaxError where the job needs more arguments than it got."""
        if self._first_missing >= 0:
            raise self._source.error(
                f"the job needs {self._highest} argument{'s'[: self._highest > 1]}, {len(self._arguments)} given",
                self._first_missing,
                remedy="put them behind the job's file name",
            )

    def warnings(self) -> list[str]:
        """Say which arguments are used nowhere."""
        extra = len(self._arguments) - self._highest
        return [f"the last {extra} of {len(self._arguments)} arguments are used nowhere"] if extra > 0 else []

    def _inside(self, found: re.Match[str], offset: int) -> str:
        if found[1] is None:
            return found[0]
        return quote(self._value(found[1], offset + found.start()))[1:-1]

    def _value(self, name: str, offset: int) -> str:
        if name == "HOME":
            return self._home
        number = int(name)
        if number <= len(self._arguments):
            self._filled += len(self._arguments[number - 1])
            if self._filled > MAX_TEXT:
                raise self._source.error(f"arguments make the text longer than {MAX_TEXT} characters", offset)
        self._highest = max(self._highest, number)
        if number <= len(self._arguments):
            return self._arguments[number - 1]
        if self._first_missing < 0:
            self._first_missing = offset
        return ""
