"""The text of ClassAd expressions: lexemes, grammar, strings, literals.

Users' text is checked here before `classad2` sees it, for reasons found by trying: its parser gives no position,
reads `0x10` and integers of over 64 bits as 0, accepts `1; b = 2` where one expression is asked for, and a chain of
100 000 operators ends the process.  `classad2` is imported when something must be confirmed, not before: literals,
which is all that most jobs have, need none of it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobagent.errors import JobSyntaxError

MAX_TEXT = 10_000_000  # characters of one description
MAX_NESTING = 100  # classad2 refuses somewhere between 100 and 200
MAX_OPERATORS = 5000  # of one expression; classad2 overflows the stack above 20 000

Literal = str | int | float | bool
Substitute = Callable[[str, int], str]

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
KEYWORDS: Mapping[str, bool | None] = {"true": True, "false": False, "undefined": None, "error": None}
_UNARY = frozenset("+-!~")
_LOGIC = frozenset({"||", "&&", "|", "^", "&", "==", "!=", "=?=", "=!=", "<", "<=", ">", ">=", "?:"})
_ARITHMETIC = frozenset({"<<", ">>", ">>>", "+", "-", "*", "/", "%"})
_BINARY = _LOGIC | _ARITHMETIC
_OPENER = {"call": "(", "record": "["}
_CLOSER = {"(": ")", "call": ")", "{": "}", "[": "]", "record": "]", "?": ":"}
_WORD_OPERATORS = frozenset({"is", "isnt"})
_RESERVED = frozenset({*KEYWORDS, *_WORD_OPERATORS, "parent"})
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Lexeme:
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


class _State(enum.Enum):
    """What the grammar expects next."""

    OPERAND = "a value"
    OPERATOR = "an operator"
    MEMBER = "an attribute name after the dot"
    ATTRIBUTE = "an attribute name or ]"
    ASSIGN = "="


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression: its text on one line, its words, and where it was (`end` is behind it)."""

    text: str
    words: tuple[Lexeme, ...]
    offset: int
    end: int

    @property
    def is_bare_reference(self) -> bool:
        """Whether it is nothing but an unscoped name such as `INFO` or `std.err`: in a JDL, missing quotes."""
        first = self.words[0]
        is_path = all(w.kind in {"name", "quoted"} if i % 2 == 0 else w.text == "." for i, w in enumerate(self.words))
        return is_path and first.keyword not in {*KEYWORDS, "other", "self", "my", "target", "parent"}

    def literal(self) -> Literal | None:
        """The constant that it is, `None` for anything that must be evaluated."""
        return literal(self.words)


def scan(source: Source, offset: int, *, until: str, substitute: Substitute | None = None) -> Expression:
    """Read one expression from `offset` up to one of the characters `until` outside brackets, or the end.

    `substitute(lexeme text, its offset)` returns the string or number that replaces a string or a `$n`; without it
    `$` is refused.

    Raises:
        JobSyntaxError: With position and what was expected.
    """
    checker = _Checker(source, until)
    pieces: list[str] = []
    words: list[Lexeme] = []
    end = len(source.text)
    for word in source.lexemes(offset):
        if word.kind == "blank":
            pieces.append(" ")
            continue
        if not checker.open and word.kind == "operator" and word.text in until:
            end = word.offset
            break
        if word.kind == "argument" and substitute is None:
            raise source.error(f"unexpected {word.text}", word.offset)
        if word.kind in {"string", "argument"}:
            if "\n" in word.text:
                checker.spanning = word.offset
            body = substitute(word.text, word.offset) if substitute else word.text
            if body.startswith('"'):
                word = Lexeme("string", quote(unquote(body, source, word.offset)), word.offset)
            else:
                word = Lexeme("number", body, word.offset)
        checker.feed(word)
        words.append(word)
        pieces.append(word.text)
    checker.finish(end)
    return Expression("".join(pieces).strip(), tuple(words), words[0].offset, end)


class _Checker:
    """The grammar as one loop with an explicit stack: no input makes it recurse."""

    def __init__(self, source: Source, until: str) -> None:
        self._source = source
        self._until = until
        self._state = _State.OPERAND
        self._may_call = False
        self._is_just_opened = False
        self._operators = 0
        self.open: list[tuple[str, int]] = []
        self.spanning = -1  # where the last string of several lines starts: a likely forgotten quote

    def feed(self, word: Lexeme) -> None:
        """Take the next word; raises JobSyntaxError where it does not fit."""
        just_opened, self._is_just_opened = self._is_just_opened, False
        may_call, self._may_call = self._may_call, False
        match self._state:
            case _State.OPERAND:
                self._operand(word, just_opened)
            case _State.OPERATOR:
                self._operator(word, may_call)
            case _State.MEMBER if word.kind in {"name", "quoted"}:
                self._state = _State.OPERATOR
            case _State.ATTRIBUTE if word.kind in {"name", "quoted"}:
                self._state = _State.ASSIGN
            case _State.ATTRIBUTE if word.text == ";":
                pass
            case _State.ATTRIBUTE if word.text == "]":
                self._close(word)
            case _State.ASSIGN if word.text == "=":
                self._state = _State.OPERAND
            case _:
                raise self._unexpected(word.offset)

    def finish(self, offset: int) -> None:
        """Raise JobSyntaxError where the expression may not end at `offset`."""
        if self.open:
            kind, opened = self.open[-1]
            raise self._source.error(f"{_OPENER.get(kind, kind)} is not closed, expected {_CLOSER[kind]}", opened)
        if self._state is not _State.OPERATOR:
            raise self._unexpected(offset)

    def _operand(self, word: Lexeme, just_opened: bool) -> None:
        if word.kind in {"string", "number", "quoted"}:
            if word.kind == "number":
                number(word, self._source)
            self._state = _State.OPERATOR
        elif word.kind == "name":
            self._state = _State.OPERATOR
            self._may_call = word.keyword not in KEYWORDS
        elif word.text in _UNARY:
            self._count(word)
        elif word.text in {"(", "{"}:
            self._push(word.text, word)
        elif word.text == "[":
            self._push("record", word)
            self._state = _State.ATTRIBUTE
        elif word.text == ".":
            self._state = _State.MEMBER
        elif just_opened and word.text == _CLOSER[self.open[-1][0]] and self.open[-1][0] in {"{", "call"}:
            self._close(word)
        else:
            raise self._unexpected(word.offset)

    def _operator(self, word: Lexeme, may_call: bool) -> None:
        top = self.open[-1][0] if self.open else ""
        if word.text in _BINARY or word.keyword in _WORD_OPERATORS:
            self._count(word)
            self._state = _State.OPERAND
        elif word.text == ".":
            self._count(word)
            self._state = _State.MEMBER
        elif word.text == "?":
            self._count(word)
            self._push("?", word)
            self._state = _State.OPERAND
        elif word.text == "(" and may_call:
            self._push("call", word)
            self._state = _State.OPERAND
        elif word.text == "[":
            self._push("[", word)
            self._state = _State.OPERAND
        elif word.text == "," and top in {"{", "call"}:
            self._state = _State.OPERAND
        elif word.text == ";" and top == "record":
            self._state = _State.ATTRIBUTE
        elif top and word.text == _CLOSER[top]:
            self._close(word)
        else:
            raise self._unexpected(word.offset)

    def _push(self, kind: str, word: Lexeme) -> None:
        if len(self.open) >= MAX_NESTING:
            raise self._source.error(f"brackets are nested more than {MAX_NESTING} deep", word.offset)
        self.open.append((kind, word.offset))
        self._is_just_opened = True

    def _close(self, word: Lexeme) -> None:
        self._state = _State.OPERAND if word.text == ":" else _State.OPERATOR
        self.open.pop()

    def _count(self, word: Lexeme) -> None:
        self._operators += 1
        if self._operators > MAX_OPERATORS:
            raise self._source.error(f"an expression has more than {MAX_OPERATORS} operators", word.offset)

    def _unexpected(self, offset: int) -> JobSyntaxError:
        expected = self._state.value
        if self._state is _State.OPERATOR:
            top = self.open[-1][0] if self.open else ""
            others = [_CLOSER[top]] if top else list(self._until)
            others += {"{": [","], "call": [","], "record": [";"]}.get(top, [])
            expected = " or ".join([*others, "an operator"])
        hint = ""
        if self.spanning >= 0:
            line, _ = self._source.position(self.spanning)
            hint = f'the string that starts on line {line} goes over several lines: is its closing " missing?'
        elif self.open and self._state is _State.OPERATOR:
            kind, opened = self.open[-1]
            line, column = self._source.position(opened)
            hint = f"the {_OPENER.get(kind, kind)} of line {line}, column {column} is open"
        return self._source.error(f"expected {expected}, found {self._source.found(offset)}", offset, remedy=hint)


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


def confirm(expression: Expression, source: Source) -> None:
    """Raise JobSyntaxError where HTCondor's own parser refuses the expression."""
    import classad2

    try:
        classad2.ExprTree(expression.text)
    except (classad2.ClassAdException, ValueError) as error:
        raise source.error("not a ClassAd expression", expression.offset) from error
