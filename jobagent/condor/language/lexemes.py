"""The words of the ClassAd language, strings and constants: what JDLs, job ads and expressions are made of.

`classad2` is not needed for any of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jobagent.errors import JobSyntaxError

MAX_TEXT = 10_000_000  # characters of one description

Literal = str | int | float | bool

KEYWORDS: Mapping[str, bool | None] = {"true": True, "false": False, "undefined": None, "error": None}
WORD_OPERATORS = frozenset({"is", "isnt"})

_LEXEME = re.compile(
    r"""(?P<blank>(?:[ \t\r\n\f]++|//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+\*/)++)
      | (?P<string>"(?:[^"\\]++|\\.)*+")
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*+)
      | (?P<quoted>'(?:[^'\\\n]++|\\[^\n])++')
      | (?P<number>(?:[0-9]++(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?(?![A-Za-z0-9_.]))
      | (?P<argument>\$(?:[1-9][0-9]{0,5}|HOME\b))
      | (?P<operator>=\?=|=!=|>>>|\|\||&&|==|!=|<=|>=|<<|>>|\?:|[-+*/%&|^~!<>?:.,;=(){}\[\]])""",
    re.VERBOSE | re.DOTALL,
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff]")
_ESCAPE = re.compile(r"\\([0-7]{1,3}|.)", re.DOTALL)
_OLD_BACKSLASH = re.compile(r'\\(?!")|\\(?="\s*$)')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_TO_ESCAPE = re.compile(r'["\\\n\t\r\b\f]')
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
_RESERVED = frozenset({*KEYWORDS, *WORD_OPERATORS, "parent"})
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TIGHT_BEFORE = frozenset(".,()]")
_TIGHT_AFTER = frozenset(".([")


class Lexeme(NamedTuple):
    """One word of the language; `kind` is the name of a group of the lexical grammar."""

    kind: str
    text: str
    offset: int

    @property
    def keyword(self) -> str:
        """The lower-case word of a name, empty for anything else."""
        return self.text.lower() if self.kind == "name" else ""


class Source:
    """A text with its positions.  Refuses at once what no dialect may hold: control characters and excess.

    `first_line` is its line in a longer text of which it is a part.
    """

    def __init__(self, text: str, *, has_hash_comments: bool = False, first_line: int = 1) -> None:
        self.text = text.removeprefix("\ufeff")
        self._first_line = first_line
        self._has_hash_comments = has_hash_comments
        if len(text) > MAX_TEXT:
            raise JobSyntaxError(f"the text has {len(text)} characters, at most {MAX_TEXT} are read")
        if found := _UNPRINTABLE.search(self.text):
            raise self.error(f"control character U+{ord(found[0]):04X}", found.start(), remedy="remove it")

    def error(self, message: str, offset: int, *, remedy: str = "") -> JobSyntaxError:
        """Return the error with the line and column of `offset`."""
        line, column = self.position(offset)
        return JobSyntaxError(message, line=line, column=column, remedy=remedy)

    def position(self, offset: int) -> tuple[int, int]:
        """Return line and column of `offset`, from 1."""
        return self.text.count("\n", 0, offset) + self._first_line, offset - self.text.rfind("\n", 0, offset)

    def lexemes(self, offset: int) -> Iterator[Lexeme]:
        """Yield the words from `offset` on, blanks and comments as one blank each; raises JobSyntaxError."""
        while offset < len(self.text):
            found = _LEXEME.match(self.text, offset)
            if found is None:
                end = self._comment_end(offset)
                if not end:
                    raise self._malformed(offset)
                yield Lexeme("blank", self.text[offset:end], offset)
                offset = end
                continue
            yield Lexeme(found.lastgroup or "", found[0], offset)
            offset = found.end()

    def skip_blanks(self, offset: int) -> int:
        """Return the offset of the first word at or after `offset`."""
        while offset < len(self.text):
            found = _LEXEME.match(self.text, offset)
            if found and found.lastgroup == "blank":
                offset = found.end()
            elif not found and (end := self._comment_end(offset)):
                offset = end
            else:
                break
        return offset

    def found(self, offset: int) -> str:
        """Describe what stands at `offset`, for messages."""
        if offset >= len(self.text):
            return "the end of the text"
        found = _LEXEME.match(self.text, offset)
        return repr(found[0][:60] if found else self.text[offset])

    def _comment_end(self, offset: int) -> int:
        """Return where a comment that starts at `offset` ends, 0 where none does: `#` opens one only on its line."""
        if not self._has_hash_comments or self.text[offset] != "#":
            return 0
        if self.text[self.text.rfind("\n", 0, offset) + 1 : offset].strip():
            return 0
        end = self.text.find("\n", offset)
        return len(self.text) if end < 0 else end + 1

    def _malformed(self, offset: int) -> JobSyntaxError:
        character = self.text[offset]
        if character == '"':
            return self.error('the string that starts here is not closed, expected a "', offset)
        if self.text.startswith("/*", offset):
            return self.error("the comment that starts here is not closed, expected */", offset)
        if character.isdigit():
            return self.error("malformed number", offset, remedy="strings need quotes, as do sizes with units")
        if character == "#":
            return self.error("unexpected #", offset, remedy="comments take a line of their own")
        return self.error(f"unexpected character {character!r}", offset, remedy="strings need quotes")


def number(word: Lexeme, source: Source) -> int | float:
    """Return the value of a number; raises JobSyntaxError for one that ClassAds cannot hold."""
    if set(word.text) <= set("0123456789"):
        if len(word.text) > 19 or int(word.text) > 2**63 - 1:
            raise source.error(f"integer {word.text[:40]} is above {2**63 - 1}", word.offset)
        return int(word.text)
    value = float(word.text)
    if value == float("inf"):
        raise source.error(f"number {word.text[:40]} is too large", word.offset)
    return value


def literal(words: Sequence[Lexeme]) -> Literal | None:
    """Return the constant that `words` are: a string, a number with or without sign, true or false; else `None`."""
    if len(words) == 2 and words[0].text == "-" and words[1].kind == "number":
        positive = literal(words[1:])
        return -positive if isinstance(positive, int | float) else None
    if len(words) != 1:
        return None
    word = words[0]
    if word.kind == "string":
        return unquote(word.text)
    if word.kind == "number":
        return int(word.text) if word.text.isdigit() else float(word.text)
    return KEYWORDS.get(word.keyword)


def quote(value: str) -> str:
    """Return `value` as a ClassAd string on one line."""
    return f'"{_TO_ESCAPE.sub(lambda found: _ESCAPED[found[0]], value)}"'


def unquote(text: str, source: Source | None = None, offset: int = 0) -> str:
    r"""Return the value of a ClassAd string; `\ooo` are bytes of UTF-8.

    Raises:
        JobSyntaxError: An escape makes a control character, or bytes that are no UTF-8.
    """
    body = text[1:-1]
    if "\\" not in body:
        return body
    try:
        value = _ESCAPE.sub(_unescape, body).encode(errors="surrogateescape").decode()
    except UnicodeError as error:
        raise _located("escapes in this string do not make UTF-8 text", source, offset) from error
    if found := _UNPRINTABLE.search(value.replace("\b", "")):
        raise _located(f"an escape in this string makes control character U+{ord(found[0]):04X}", source, offset)
    return value


def new_syntax(line: str) -> str:
    """Return a line of old ClassAd syntax, where a backslash escapes nothing but a quote inside a string, in new."""
    return _OLD_BACKSLASH.sub(r"\\\\", line) if "\\" in line else line


def _unescape(found: re.Match[str]) -> str:
    escape = found[1]
    if escape[0] not in "01234567":
        return _ESCAPES.get(escape, escape)
    code = int(escape, 8) & 0xFF
    return chr(code) if code < 0x80 else chr(0xDC00 + code)


def _located(message: str, source: Source | None, offset: int) -> JobSyntaxError:
    return source.error(message, offset) if source else JobSyntaxError(message)


def attribute_name(name: str) -> str:
    """Return `name` as it is written in an expression: in single quotes unless it is an identifier."""
    if _IDENTIFIER.fullmatch(name) and name.lower() not in _RESERVED:
        return name
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"


def render(value: Literal | Sequence[Literal]) -> str:
    """Return the expression text of a constant or a list of constants."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return f"{{ {', '.join(map(render, value))} }}" if value else "{ }"


def written(words: Iterable[Lexeme]) -> str:
    """Return words as text on one line."""
    pieces: list[str] = []
    previous: Lexeme | None = None
    for word in words:
        if previous is not None and not _is_tight(previous, word):
            pieces.append(" ")
        pieces.append(word.text)
        previous = word
    return "".join(pieces)


def _is_tight(previous: Lexeme, word: Lexeme) -> bool:
    if previous.kind == "operator" and (previous.text in _TIGHT_AFTER or previous.text == "!"):
        return True
    if word.kind != "operator":
        return False
    if word.text in "([":
        return previous.kind == "name" and previous.keyword not in {"is", "isnt"}
    return word.text in _TIGHT_BEFORE
