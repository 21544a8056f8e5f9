"""Values in HTCondor's submit language, so that they arrive in the job's ad as they were.

The language replaces `$(…)` when a job is submitted and `$$(…)` when it is matched; strings of expressions are in old
ClassAd syntax, where a backslash is a backslash and a newline cannot be said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jobagent.condor.language import arguments as notation
from jobagent.condor.language import environment
from jobagent.condor.language.expressions import scan
from jobagent.condor.language.lexemes import Lexeme, Source, unquote, written
from jobagent.errors import JobSyntaxError

_AT_SUBMIT = re.compile(r"\$(?=[A-Za-z_]*\(|\$)")
_AT_MATCH = re.compile(r"\$\$(?=[(\[])")
_COMMENT_OR_SPACE = re.compile(r"^[\s#]|\s$")


def text(value: str) -> str:
    """Return a plain value (a file name).

    Raises:
        JobSyntaxError: It has a newline, a comma, outer blanks or a last backslash, which the language cannot say.
    """
    if "\n" in value or "," in value or value.endswith("\\") or _COMMENT_OR_SPACE.search(value):
        raise JobSyntaxError(
            f"{value[:200]!r} cannot be said in a submit file", remedy="rename it without commas and outer blanks"
        )
    return _literal_dollars(value)


def files(values: Sequence[str]) -> str:
    """Return a list of file names."""
    return ", ".join(map(text, values))


def arguments(values: Sequence[str]) -> str:
    """Return arguments in the new notation."""
    return _quoted(notation.join(values))


def variables(values: Mapping[str, str]) -> str:
    """Return an environment in the new notation."""
    return _quoted(environment.render(values))


def expression(value: str) -> str:
    """Return a ClassAd expression; raises JobSyntaxError for strings that old ClassAd syntax cannot say."""
    words = scan(Source(value), 0, until="").words
    last = len(words) - 1
    old = [_old(word, is_last=position == last) for position, word in enumerate(words)]
    return _without_macros(written(old))


def _old(word: Lexeme, *, is_last: bool) -> Lexeme:
    if word.kind != "string":
        return word
    value = unquote(word.text)
    if "\n" in value or "\r" in value or (value.endswith("\\") and not is_last):
        raise JobSyntaxError(f"the string {value[:80]!r} cannot be said in a submit file", remedy="drop its newlines")
    escaped = value.replace('"', '\\"')
    return Lexeme("string", f'"{escaped}"', word.offset)


def _quoted(value: str) -> str:
    if "\n" in value or "\r" in value:
        raise JobSyntaxError("arguments and environment of a submit file cannot hold newlines")
    doubled = value.replace('"', '""')
    return _literal_dollars(f'"{doubled}"')


def _literal_dollars(value: str) -> str:
    return "$$(DOLLARDOLLAR)".join(map(_without_macros, _AT_MATCH.split(value)))


def _without_macros(value: str) -> str:
    if "$(dollar)" in value.lower():  # HTCondor replaces it until none is left
        raise JobSyntaxError("a submit file cannot say the text $(DOLLAR)")
    return _AT_SUBMIT.sub("$(DOLLAR)", value)
