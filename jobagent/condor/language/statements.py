"""`name = expression;` statements with their positions: the frame that AliEn's JDL and new-style ClassAds share."""

from __future__ import annotations

import re
from typing import NamedTuple

from jobagent.condor.language.expressions import Expression, Substitute, confirm, scan
from jobagent.condor.language.lexemes import Literal, Source, render, unquote
from jobagent.errors import JobSyntaxError

MAX_STATEMENTS = 20_000
MAX_ITEMS = 100_000  # of one list
_KEY = re.compile(r"[A-Za-z0-9_]++|'(?:[^'\\\n]++|\\[^\n])++'")


class Rules(NamedTuple):
    """How a dialect differs: AliEn's drops duplicates in lists, substitutes arguments, quotes every string.

    `is_confirmed` shows expressions to HTCondor's own parser at once; what HTCondor wrote itself needs that only when
    it is evaluated.
    """

    substitute: Substitute | None = None
    has_sets: bool = False
    is_quoted: bool = False
    is_confirmed: bool = True
    reference_keys: frozenset[str] = frozenset()


class Statement(NamedTuple):
    """One attribute.  `items` are its constants (a scalar is a list of one), `None` where it must be evaluated."""

    name: str
    text: str
    items: tuple[Literal, ...] | None
    is_list: bool
    source: Source
    offset: int

    def error(self, message: str, remedy: str = "") -> JobSyntaxError:
        """Return an error that names the attribute and where its value is."""
        return self.source.error(f"{self.name}: {message}", self.offset, remedy=remedy)


def read_value(name: str, source: Source, offset: int, *, until: str = "") -> tuple[Statement, int]:
    """Read one value of a ClassAd from `offset` on; return it and the offset behind it."""
    return _Reader(source, Rules(is_confirmed=False)).value(name, offset, until)


def read(source: Source, rules: Rules) -> dict[str, Statement]:
    """Return the statements of a whole text by lower-case name, the last of a name where it was written last.

    Raises:
        JobSyntaxError: With position and what was expected.
    """
    return _Reader(source, rules).read()


class _Reader:
    def __init__(self, source: Source, rules: Rules) -> None:
        self._source = source
        self._rules = rules

    def read(self) -> dict[str, Statement]:
        source = self._source
        offset = source.skip_blanks(0)
        is_wrapped = source.text.startswith("[", offset)
        offset += is_wrapped
        statements: dict[str, Statement] = {}
        while True:
            offset = source.skip_blanks(offset)
            if offset >= len(source.text):
                if is_wrapped:
                    raise source.error("the text ends inside [ ], expected ]", offset)
                return statements
            character = source.text[offset]
            if character == ";":
                offset += 1
            elif character == "]" and is_wrapped:
                self._end(offset + 1)
                return statements
            else:
                statement, offset = self._statement(offset, "];" if is_wrapped else ";")
                statements.pop(statement.name.lower(), None)
                statements[statement.name.lower()] = statement
                if len(statements) > MAX_STATEMENTS:
                    raise source.error(f"more than {MAX_STATEMENTS} attributes", offset)

    def _end(self, offset: int) -> None:
        offset = self._source.skip_blanks(offset)
        while self._source.text.startswith(";", offset):
            offset = self._source.skip_blanks(offset + 1)
        if offset < len(self._source.text):
            raise self._source.error(f"expected the end after ], found {self._source.found(offset)}", offset)

    def _statement(self, offset: int, until: str) -> tuple[Statement, int]:
        source = self._source
        key = _KEY.match(source.text, offset)
        if key is None:
            raise source.error(f"expected an attribute name, found {source.found(offset)}", offset)
        equals = source.skip_blanks(key.end())
        if not source.text.startswith("=", equals) or source.text.startswith("==", equals):
            raise source.error(f"expected = after {key[0][:60]}, found {source.found(equals)}", equals)
        start = source.skip_blanks(equals + 1)
        name = unquote(key[0]) if key[0].startswith("'") else key[0]
        statement, end = self.value(name, start, until)
        return statement, end + source.text.startswith(";", end)

    def value(self, name: str, offset: int, until: str) -> tuple[Statement, int]:
        read_it = self._list if self._source.text.startswith("{", offset) else self._scalar
        return read_it(name, offset, until)

    def _scalar(self, name: str, offset: int, until: str) -> tuple[Statement, int]:
        expression = scan(self._source, offset, until=until, substitute=self._rules.substitute)
        value = self._constant(expression, name)
        items = None if value is None else (value,)
        text = expression.text if value is None else render(value)
        return Statement(name, text, items, False, self._source, expression.offset), expression.end

    def _list(self, name: str, offset: int, until: str) -> tuple[Statement, int]:
        source = self._source
        pairs: list[tuple[str, Literal | None]] = []
        position = source.skip_blanks(offset + 1)
        while not source.text.startswith("}", position):
            if position >= len(source.text):
                raise source.error("{ is not closed, expected }", offset)
            expression = scan(source, position, until=",}", substitute=self._rules.substitute)
            value = self._constant(expression, name)
            pairs.append((expression.text if value is None else render(value), value))
            if len(pairs) > MAX_ITEMS:
                raise source.error(f"a list has more than {MAX_ITEMS} items", position)
            position = source.skip_blanks(expression.end + source.text.startswith(",", expression.end))
        end = source.skip_blanks(position + 1)
        if end < len(source.text) and source.text[end] not in until:
            return self._scalar(name, offset, until)  # `{…}[0]` and the like, or an error
        if self._rules.has_sets:
            pairs = list(dict(pairs).items())
        constants = tuple(value for _, value in pairs if value is not None)
        items = constants if len(constants) == len(pairs) else None
        text = f"{{ {', '.join(text for text, _ in pairs)} }}" if pairs else "{ }"
        return Statement(name, text, items, True, source, offset), end

    def _constant(self, expression: Expression, name: str) -> Literal | None:
        """Return the constant, or `None` for an expression that HTCondor's parser confirms."""
        value = expression.literal()
        if value is not None:
            return value
        if self._rules.is_quoted:
            self._refuse_unquoted(expression, name)
        if self._rules.is_confirmed:
            confirm(expression, self._source)
        return None

    def _refuse_unquoted(self, expression: Expression, name: str) -> None:
        if expression.is_bare_reference and name.lower() not in self._rules.reference_keys:
            raise self._source.error(
                f"{name} has the bare word {expression.text[:80]}, expected a quoted string, a number, a list or an "
                "expression",
                expression.offset,
                remedy=f'AliEn quotes every string, other JDL dialects do not: write "{expression.text[:80]}"',
            )
