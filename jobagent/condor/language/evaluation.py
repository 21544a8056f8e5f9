"""The values of a description's attributes: constants as they are, expressions evaluated by HTCondor's library.

Whoever writes a job writes these expressions, and the node service evaluates them for everybody: evaluation is
bounded before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from jobagent.condor.language.lexemes import KEYWORDS, Literal, Source, attribute_name
from jobagent.condor.language.statements import Statement
from jobagent.errors import JobSyntaxError
from jobagent.model import PackageSpec

T = TypeVar("T")

MAX_WORDS = 100_000  # that one evaluation reads, each reference counted as often as it is followed
MAX_CHAIN = 50  # references to references
_HIDES_REFERENCES = frozenset({"eval", "evalineachcontext", "countmatches", "unparse", "parent"})


class Values:
    """The attributes of one description, by lower-case name, as values of Python."""

    def __init__(self, statements: Mapping[str, Statement]) -> None:
        self._statements = statements
        self._texts = {s.name: s.text for s in statements.values()}

    def literals(self, key: str) -> tuple[Literal, ...]:
        """Return the constants of an attribute (a scalar is one of them); empty where it is absent or undefined.

        Raises:
            JobSyntaxError: It has another kind of value, or is too costly to evaluate.
        """
        statement = self._statements.get(key)
        if statement is None:
            return ()
        if statement.items is not None:
            return statement.items
        if statement.text.lower() == "undefined":
            return ()
        value = evaluate(statement.text, self._texts)
        if value is None:
            raise statement.error(
                f"{statement.text[:80]} has no constant value", "check the attributes that it refers to"
            )
        return tuple(value) if isinstance(value, list) else (value,)

    def is_open(self, key: str) -> bool:
        """Whether an attribute has no constant value, as where it depends on the machine."""
        statement = self._statements.get(key)
        return statement is not None and statement.items is None and evaluate(statement.text, self._texts) is None

    def strings(self, key: str) -> tuple[str, ...]:
        """Return the constants of an attribute as text."""
        return tuple(text_of(value) for value in self.literals(key))

    def string(self, *keys: str) -> str:
        """Return the one constant of the first attribute that is there, as text without outer blanks; or nothing."""
        for key in keys:
            values = self.strings(key)
            if len(values) > 1:
                raise self._statements[key].error(f"{len(values)} values, expected one")
            if values:
                return values[0].strip()
        return ""

    def is_set(self, key: str) -> bool:
        """Whether a switch is on."""
        return self.string(key).lower() not in {"", "0", "false", "no"}

    def packages(self, key: str) -> tuple[PackageSpec, ...]:
        """Return the packages of a list, or of strings with commas, each once."""
        names = (name for text in self.strings(key) for name in text.split(","))
        specs = [self.located(key, PackageSpec.parse, name) for name in names if name.strip()]
        return tuple(dict.fromkeys(specs))

    def located(self, key: str, read: Callable[[str], T], text: str) -> T:
        """Return `read(text)`, with the attribute and its position in its error."""
        try:
            return read(text)
        except JobSyntaxError as error:
            raise self._statements[key].error(error.cause_line, error.remedy) from error

    def quantity(self, key: str, read: Callable[[str], int]) -> int:
        """Return what `read` makes of an attribute's constant, 0 where there is none."""
        text = self.string(key)
        return self.located(key, read, text) if text else 0


def text_of(value: Literal) -> str:
    """Return a constant as text: strings as they are, `true` and `false` in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def evaluate(text: str, attributes: Mapping[str, str]) -> Literal | list[Literal] | None:
    """Evaluate an expression among `attributes` (name → expression text); `None` is undefined, error or no constant.

    All texts must have passed `expressions.scan`.
    """
    needed = _reach(text, attributes)
    if needed is None:
        return None
    import classad2

    ad = classad2.ClassAd(f"[{'; '.join(f'{attribute_name(name)} = {value}' for name, value in needed.items())}]")
    try:
        value = classad2.ExprTree(text).eval(ad)
        if not isinstance(value, list):
            return value if _is_constant(value) else None
        items = [item.eval(ad) if isinstance(item, classad2.ExprTree) else item for item in value]
    except classad2.ClassAdException:
        return None
    return items if all(map(_is_constant, items)) else None


def _reach(text: str, attributes: Mapping[str, str]) -> dict[str, str] | None:
    """Return the attributes that evaluating `text` can come to, `None` where it would cost too much or hides them."""
    by_key = {name.lower(): (name, value) for name, value in attributes.items()}
    costs: dict[str, int] = {}
    reached: dict[str, str] = {}

    def cost(expression: str, chain: tuple[str, ...]) -> int:
        words = [w for w in Source(expression).lexemes(0) if w.kind != "blank"]
        total = len(words)
        for word in words:
            key = word.text.strip("'").lower()
            if word.text == ";" or key in _HIDES_REFERENCES or key in chain or len(chain) > MAX_CHAIN:
                return MAX_WORDS + 1
            if word.kind in {"name", "quoted"} and key in by_key and key not in KEYWORDS:
                name, value = by_key[key]
                reached[name] = value
                if key not in costs:
                    costs[key] = cost(value, (*chain, key))
                total += costs[key]
            if total > MAX_WORDS:
                return total
        return total

    return reached if cost(text, ()) <= MAX_WORDS else None


def _is_constant(value: object) -> bool:
    # classad2.Value (undefined, error) is an integer enumeration
    return type(value) in {str, int, float, bool}
