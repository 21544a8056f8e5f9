"""HTCondor's submit language: text → Job, by HTCondor's own parser.

The job is the first of the queue statement: `$(Process)` is 0, the macros of `queue … in/from` are the first item's.
Commands become attributes of the job ad as `condor_submit` makes them, and those are read as any ad is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobagent.condor.language import ads, environment, quantities
from jobagent.condor.language import arguments as notation
from jobagent.condor.language.expressions import confirm, scan
from jobagent.condor.language.lexemes import Literal, Source, new_syntax, quote, render
from jobagent.condor.language.statements import Statement, read_value
from jobagent.condor.language.submit_queue import Queue, first_item, parse_queue
from jobagent.condor.language.submit_text import Command, SubmitText, read
from jobagent.errors import JobSyntaxError
from jobagent.model import Job

if TYPE_CHECKING:
    import htcondor2

DIALECT = "submit"
_MACRO_ARGUMENT = re.compile(r"([A-Za-z_][\w.]*)\s*=(.*)")
# Submit commands that become strings of the job ad as they are.
_STRINGS: Mapping[str, str] = {
    "input": "In",
    "output": "Out",
    "error": "Err",
    "transfer_input_files": "TransferInput",
    "transfer_output_files": "TransferOutput",
    "initialdir": "Iwd",
    "initial_dir": "Iwd",
}
_EXPRESSIONS: Mapping[str, str] = {
    "requirements": "Requirements",
    "allowed_job_duration": "AllowedJobDuration",
    "allowed_execute_duration": "AllowedExecuteDuration",
    "request_cpus": "RequestCpus",
}
_SIZES: Mapping[str, tuple[str, str, int]] = {
    "request_memory": ("RequestMemory", "M", 1 << 20),
    "request_disk": ("RequestDisk", "K", 1 << 10),
}
_PLAIN_UNIVERSES = frozenset({"vanilla", "container", "docker", "5"})


def parse(text: str, *, arguments: Sequence[str] = (), base_directory: Path = Path()) -> Job:
    """Return the first job of a submit file; `arguments` are `name=value` macros, as `condor_submit` takes them.

    Raises:
        JobSyntaxError: With the line.
    """
    given = [_macro(argument) for argument in arguments]
    found = read(text, given)
    reading = _Reading(found, _described(text, given), base_directory)
    job = ads.job_of(reading.statements(), base_directory=base_directory, dialect=DIALECT)
    return dataclasses.replace(
        job,
        attributes=MappingProxyType(reading.source_attributes()),
        warnings=(*job.warnings, *reading.warnings),
    )


def _macro(argument: str) -> Command:
    found = _MACRO_ARGUMENT.fullmatch(argument)
    if found is None or not argument.isprintable():
        raise JobSyntaxError(f"argument {argument[:80]!r} is not a macro", remedy="a submit file takes name=value")
    return Command(found[1], found[2].strip(), 0)


def _described(text: str, given: Sequence[Command]) -> htcondor2.Submit:
    import htcondor2

    macros = "".join(f"{command.name} = {command.value}\n" for command in given)
    try:
        return htcondor2.Submit(macros + text.removeprefix("\ufeff"))
    except (ValueError, htcondor2.HTCondorException) as error:
        raise JobSyntaxError(
            f"HTCondor refuses this submit file: {error}", remedy="try condor_submit -dry-run"
        ) from error


class _Reading:
    """A described submission on its way to the statements of a job ad."""

    def __init__(self, text: SubmitText, described: htcondor2.Submit, base_directory: Path) -> None:
        self._text = text
        self._described = described
        self._base_directory = base_directory
        self.warnings: list[str] = []
        self._names = {name.lower(): name for name in described}
        self._bind_first_item(parse_queue(text))

    def statements(self) -> dict[str, Statement]:
        """Return the job's attributes by lower-case name."""
        found: dict[str, Statement] = {}

        def add(statement: Statement | None) -> None:
            if statement is not None:
                found[statement.name.lower()] = statement

        for command, attribute in _STRINGS.items():
            add(self._string(command, attribute))
        add(self._executable())
        for command, attribute in _EXPRESSIONS.items():
            add(self._expression(command, attribute))
        for command in _SIZES:
            add(self._size(command))
        add(self._arguments())
        add(self._environment())
        for key, name in self._names.items():
            if key.startswith("my."):
                add(self._expression(key, name[3:]))
        self._warn()
        return found

    def source_attributes(self) -> dict[str, str]:
        """Return the commands as they were written, the queue statement last; custom ones are `MY.Name`."""
        found: dict[str, str] = {}
        for name in self._names.values():
            value = self._described[name]
            found[_my(name)] = value if _is_custom(name) else quote(value)
        if self._text.queue is not None:
            found["queue"] = quote("\n".join([self._text.queue, *self._text.items, *[")"][: bool(self._text.items)]]))
        return found

    def _bind_first_item(self, queue: Queue) -> None:
        for name, value in first_item(queue, self._base_directory).items():
            self._described[name] = value
        if queue.is_array:
            self.warnings.append(f"queue {self._text.queue} makes several jobs: this is the first")

    def _value(self, command: str) -> str:
        """The expanded value of a command, empty where it is not there."""
        name = self._names.get(command)
        if name is None:
            return ""
        try:
            return str(self._described.expand(name)).strip()
        except KeyError:  # how the bindings say that the value is empty
            return ""

    def _source(self, command: str, text: str) -> Source:
        return Source(text, first_line=self._text.line_of(_my(self._names[command])))

    def _string(self, command: str, attribute: str) -> Statement | None:
        value = self._value(command)
        return self._constant(command, attribute, value) if value else None

    def _executable(self) -> Statement | None:
        """Return Cmd: unlike inputs, a program is looked for where one submits, not in the initial directory."""
        value = self._value("executable")
        if value and {"initialdir", "initial_dir"} & set(self._names) and not value.startswith("/"):
            is_local = self._value("transfer_executable").lower() not in {"false", "no", "0", "never"}
            value = str(self._base_directory / value) if is_local else value
        return self._constant("executable", "Cmd", value) if value else None

    def _constant(self, command: str, attribute: str, value: Literal) -> Statement:
        source = self._source(command, str(value))
        return Statement(attribute, render(value), (value,), False, source, 0)

    def _expression(self, command: str, attribute: str) -> Statement | None:
        value = new_syntax(self._value(command))
        if not value:
            return None
        source = self._source(command, value)
        statement, end = read_value(attribute, source, 0)
        if end < len(source.text):
            raise source.error(f"{attribute}: expected the end, found {source.found(end)}", end)
        if statement.items is None:
            confirm(scan(source, 0, until=""), source)
        return statement

    def _size(self, command: str) -> Statement | None:
        attribute, unit, scale = _SIZES[command]
        value = self._value(command)
        try:
            number = -(-quantities.size_bytes(value, default_unit=unit) // scale) if value else 0
        except JobSyntaxError:
            return self._expression(command, attribute)
        return self._constant(command, attribute, number) if value else None

    def _arguments(self) -> Statement | None:
        command = "arguments" if "arguments" in self._names else "args"
        value = self._value(command)
        if not value:
            return None
        if value.startswith('"'):
            return self._constant(command, "Arguments", self._unwrapped(command, value))
        words = notation.split_v1(value.replace('\\"', '"'))
        return self._constant(command, "Arguments", notation.join(words))

    def _environment(self) -> Statement | None:
        command = "environment" if "environment" in self._names else "env"
        value = self._value(command)
        if not value:
            return None
        if value.startswith('"'):
            return self._constant(command, "Environment", self._unwrapped(command, value))
        return self._constant(command, "Environment", environment.render(environment.parse_v1(value)))

    def _unwrapped(self, command: str, value: str) -> str:
        r"""Return the inside of `"…"`, where `""` is one quote."""
        inside = value[1:-1]
        if len(value) < 2 or not value.endswith('"') or inside.replace('""', "").count('"'):
            raise self._source(command, value).error(
                f'{command} starts with a " and has another that is not doubled', 0, remedy='write "" to mean "'
            )
        return inside.replace('""', '"')

    def _warn(self) -> None:
        universe = self._value("universe")
        if universe and universe.lower() not in _PLAIN_UNIVERSES:
            self.warnings.append(f"universe {universe} is HTCondor's to run: here the job runs as in vanilla")
        if "getenv" in self._names:
            self.warnings.append("getenv is kept, but `jobagent run` gives the payload only what the job names")
        if "packages" in self._names:
            self.warnings.append("packages = … is only a macro, write MY.Packages = … to ask for packages")
        if self._text.queue is None:
            self.warnings.append("there is no queue statement: condor_submit would refuse this file")


def _is_custom(name: str) -> bool:
    return name.lower().startswith("my.")


def _my(name: str) -> str:
    return f"MY.{name[3:]}" if _is_custom(name) else name
