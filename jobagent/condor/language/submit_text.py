"""What a submit file must pass before HTCondor's own parser reads it.

`htcondor2.Submit` has the language (conditions, macros, functions), but by trying: it runs the commands of `include`
lines, never returns from macros that name each other or ends the process, builds whatever length macros multiply to,
gives no line numbers, and forgets all behind the first `queue`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobagent.condor.language.lexemes import MAX_TEXT, Source
from jobagent.errors import JobSyntaxError

MAX_LINES = 100_000
MAX_MACRO_CHAIN = 100
MAX_EXPANSION = MAX_TEXT  # characters that one value may grow to

_ASSIGNMENT = re.compile(r"(\+|my\.)?([A-Za-z_/][\w./]*)\s*=\s*(.*)", re.IGNORECASE | re.DOTALL)
_BLOCK = re.compile(r"(\+|my\.)?([A-Za-z_][\w.]*)\s*@=(\w+)", re.IGNORECASE)
_QUEUE = re.compile(r"queue(?:\s+(.*)|\s*$)", re.IGNORECASE | re.DOTALL)
_CONDITION = re.compile(r"(?:if|elif|else|endif)(?:\s|$)", re.IGNORECASE)
_FOREIGN = re.compile(r"(?:include|use|template)\b", re.IGNORECASE)
_MESSAGE = re.compile(r"(?:error|warning)\s*:", re.IGNORECASE)
_MACRO = re.compile(r"\$([A-Za-z_]*)\(|[()]|([A-Za-z_][\w.]*)")

_PLAIN = re.compile(r"\$\([^$()]*\)")


@dataclass(frozen=True, slots=True)
class Command:
    """One assignment; `name` is `MY.Name` for attributes of the job ad, however they were written."""

    name: str
    value: str
    line: int


@dataclass(frozen=True, slots=True)
class SubmitText:
    """The commands in order, and the queue statement: its arguments (`None`: no statement), its lines of items."""

    commands: tuple[Command, ...]
    queue: str | None
    items: tuple[str, ...] = ()

    def line_of(self, name: str) -> int:
        """The line of the last command of that name, 1 where there is none."""
        return next((c.line for c in reversed(self.commands) if c.name.lower() == name.lower()), 1)


def read(text: str, given: Sequence[Command] = ()) -> SubmitText:
    """Return the commands and the queue statement of a submit file, behind `given` ones.

    Raises:
        JobSyntaxError: With the line: no `name = value`, a second `queue`, an `include`, macros that do not end.
    """
    source = Source(text)
    commands = list(given)
    lines = _logical_lines(source.text)
    for number, line in lines:
        if len(commands) > MAX_LINES:
            raise _error(f"more than {MAX_LINES} commands", number)
        if _CONDITION.match(line) or _MESSAGE.match(line):
            continue
        if found := _QUEUE.fullmatch(line):
            queue = (found[1] or "").strip()
            items = _items(lines, number) if queue.endswith("(") else ()
            _refuse_more(lines)
            _check_macros(commands)
            return SubmitText(tuple(commands), queue, items)
        if block := _BLOCK.fullmatch(line):
            commands.append(Command(_name(block), "\n".join(_block(lines, block[3], number)), number))
        elif found := _ASSIGNMENT.fullmatch(line):
            commands.append(Command(_name(found), found[3], number))
        elif _FOREIGN.match(line):
            word = line.split()[0]
            raise _error(f"{word} is refused: it reads or runs something else", number, "write out what it gives")
        else:
            raise _error(f"expected name = value, found {line[:60]!r}", number)
    _check_macros(commands)
    return SubmitText(tuple(commands), None)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines with their number, continued ones joined; no comments, no blank lines."""
    parts: list[str] = []
    start = 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not parts and (not line or line.startswith("#")):
            continue
        start = start if parts else number
        if line.endswith("\\"):
            parts.append(line[:-1])
            continue
        yield start, "".join([*parts, line])
        parts = []
    if parts:
        yield start, "".join(parts)


def _block(lines: Iterator[tuple[int, str]], tag: str, opened: int) -> Iterator[str]:
    for _, line in lines:
        if line == f"@{tag}":
            return
        yield line
    raise _error(f"the block that starts here is not closed, expected @{tag}", opened)


def _items(lines: Iterator[tuple[int, str]], opened: int) -> tuple[str, ...]:
    items: list[str] = []
    for _, line in lines:
        if line.startswith(")"):
            return tuple(items)
        items.append(line)
    raise _error("the list of items that starts here is not closed, expected )", opened)


def _refuse_more(lines: Iterator[tuple[int, str]]) -> None:
    for number, line in lines:
        if _QUEUE.fullmatch(line):
            raise _error("a second queue statement", number, "make a submit file of each")
        raise _error("commands behind queue mean nothing", number, "move them above it")


def _name(found: re.Match[str]) -> str:
    return f"MY.{found[2]}" if found[1] else found[2]


def _error(message: str, line: int, remedy: str = "") -> JobSyntaxError:
    return JobSyntaxError(message, line=line, column=1, remedy=remedy)


class _Macros:
    """The longest that each macro can become, whatever the conditions decide."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self._uses: dict[str, list[Command]] = {}
        self._raw: dict[str, int] = {}
        self._full: dict[str, int] = {}
        self._makes_dollars: set[str] = set()
        for command in commands:
            key = command.name.lower()
            own = sum(not function and name == key for function, name in _references(command))
            length = len(command.value) + own * self._raw.get(key, 0)  # a macro in its own value is put in at once
            self._raw[key] = max(length, self._raw.get(key, 0))
            if length > MAX_EXPANSION:
                raise _error(f"{command.name} grows to more than {MAX_EXPANSION} characters", command.line)
            self._uses.setdefault(key, []).append(command)

    def check(self, key: str, chain: tuple[str, ...] = ()) -> int:
        """Return the longest that macro `key` can become; raises JobSyntaxError where it never ends."""
        if key in self._full or key not in self._uses:
            return self._full.get(key, 0)
        line = self._uses[key][-1].line
        if key in chain:
            names = " → ".join([*chain[chain.index(key) :], key])
            raise _error(f"macros are made of each other: {names}", line)
        if len(chain) > MAX_MACRO_CHAIN:
            raise _error(f"macros are nested more than {MAX_MACRO_CHAIN} deep", line)
        total = self._raw[key]
        for command in self._uses[key]:
            for function, name in _references(command):
                if name == key and not function and not key.startswith("my."):
                    continue
                total += self.check(name, (*chain, key))
                if name == "dollar" or name in self._makes_dollars:
                    self._makes_dollars.add(key)
                    if function:  # functions expand what they got once more
                        raise _error(f"${function}({name}) may make a macro of $(DOLLAR)", command.line)
            if total > MAX_EXPANSION:
                raise _error(f"{command.name} grows to more than {MAX_EXPANSION} characters", command.line)
        self._full[key] = total
        return total


def _references(command: Command) -> list[tuple[str, str]]:
    """Return the macros in a value as (function, lower-case name).

    The function is empty for a plain `$(name)`, and `$` where one macro is inside another, which HTCondor leaves for
    later.  All words of a function's arguments count: some of them take names there.
    """
    found: list[tuple[str, str]] = []
    opened: list[str] = []  # the function of each macro, `$` without one; empty for a bracket of the text
    plain_at = -1  # where a macro without function starts whose name comes next
    for part in _MACRO.finditer(command.value):
        function, word = part[1], part[2]
        innermost = next((name for name in reversed(opened) if name), "")
        if part[0] == ")":
            del opened[-1:]
        elif word is None:
            opened.append("" if function is None else function or "$")
        elif innermost == "$" and plain_at >= 0:
            is_alone = sum(map(bool, opened)) == 1 and _PLAIN.match(command.value, plain_at)
            found.append(("" if is_alone else "$", word.lower()))
        elif innermost not in {"", "$"}:
            found.append((innermost, word.lower()))
        plain_at = part.start() if function == "" else -1
    return found


def _check_macros(commands: Sequence[Command]) -> None:
    macros = _Macros(commands)
    for command in commands:
        macros.check(command.name.lower())
