"""The grammar of ClassAd expressions.

Users' text is checked here before `classad2` sees it, for reasons found by trying: its parser gives no position,
reads `0x10` and integers of over 64 bits as 0, accepts `1; b = 2` where one expression is asked for, and a chain of
100 000 operators ends the process.  `classad2` is imported when something must be confirmed, not before: constants,
which is all that most jobs have, need none of it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from jobagent.condor.language.lexemes import (
    KEYWORDS,
    WORD_OPERATORS,
    Lexeme,
    Literal,
    Source,
    literal,
    number,
    quote,
    unquote,
)
from jobagent.errors import JobSyntaxError

MAX_NESTING = 100  # classad2 refuses somewhere between 100 and 200
MAX_OPERATORS = 5000  # of one expression; classad2 overflows the stack above 20 000

Substitute = Callable[[str, int], str]

_UNARY = frozenset("+-!~")
_LOGIC = frozenset({"||", "&&", "|", "^", "&", "==", "!=", "=?=", "=!=", "<", "<=", ">", ">=", "?:"})
_ARITHMETIC = frozenset({"<<", ">>", ">>>", "+", "-", "*", "/", "%"})
_BINARY = _LOGIC | _ARITHMETIC
_OPENER = {"call": "(", "record": "["}
_CLOSER = {"(": ")", "call": ")", "{": "}", "[": "]", "record": "]", "?": ":"}


class _State(enum.Enum):
    """What the grammar expects next."""

    OPERAND = "a value"
    OPERATOR = "an operator"
    MEMBER = "an attribute name after the dot"
    ATTRIBUTE = "an attribute name or ]"
    ASSIGN = "="


class Expression(NamedTuple):
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
        if word.text in _BINARY or word.keyword in WORD_OPERATORS:
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


def confirm(expression: Expression, source: Source) -> None:
    """Raise JobSyntaxError where HTCondor's own parser refuses the expression."""
    import classad2

    try:
        classad2.ExprTree(expression.text)
    except (classad2.ClassAdException, ValueError) as error:
        raise source.error("not a ClassAd expression", expression.offset) from error
