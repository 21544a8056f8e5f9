"""Job ads: ClassAd text → Job.

Both forms are read: long form, one attribute a line in the old string syntax (a backslash is a backslash), as
`condor_q -long` and the starter write it, and `[ a = 1; b = "x" ]`.  Expressions are evaluated only where a meaning
hangs on them, so an ad whose packages are constants is read without HTCondor's library.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from jobagent.condor.language import arguments as notation
from jobagent.condor.language import attributes, environment, quantities
from jobagent.condor.language.evaluation import Values
from jobagent.condor.language.lexemes import MAX_TEXT, Source, new_syntax
from jobagent.condor.language.statements import MAX_STATEMENTS, Rules, Statement, read, read_value
from jobagent.errors import JobSyntaxError
from jobagent.model import InputFile, Job

DIALECT = "classad"
_LINE = re.compile(r"[ \t]*([A-Za-z_][A-Za-z0-9_.]*)[ \t]*=(?!=)[ \t]*")
_NULL_FILES = frozenset({"", "/dev/null"})


def parse(text: str, *, arguments: Sequence[str] = (), base_directory: Path = Path()) -> Job:
    """Return the job of one ad.

    Raises:
        JobSyntaxError: With line and column; also for arguments, which an ad has no place for.
    """
    if arguments:
        raise JobSyntaxError("a ClassAd takes no arguments", remedy="set its Arguments attribute")
    is_bracketed = text.removeprefix("\ufeff").lstrip().startswith(("[", "/*", "//"))
    statements = read(Source(text), Rules()) if is_bracketed else read_long_form(text)
    return job_of(statements, base_directory=base_directory)


def read_long_form(text: str) -> dict[str, Statement]:
    """Return the statements of a long-form ad by lower-case name; raises JobSyntaxError."""
    if len(text) > MAX_TEXT:
        raise JobSyntaxError(f"the ad has {len(text)} characters, at most {MAX_TEXT} are read")
    statements: dict[str, Statement] = {}
    was_blank = False
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip() or line.lstrip().startswith(("#", "//")):
            was_blank = was_blank or bool(statements)
            continue
        source = Source(new_syntax(line), first_line=number)
        start = _LINE.match(source.text)
        if start is None:
            raise source.error(f"expected Name = expression, found {line.strip()[:60]!r}", 0)
        key = start[1].lower()
        if key in statements and was_blank:
            raise source.error(f"a second ad starts here ({start[1]} again)", 0, remedy="give one job at a time")
        statement, end = read_value(start[1], source, start.end())
        if end < len(source.text):
            raise source.error(f"expected the end of the line, found {source.found(end)}", end)
        statements.pop(key, None)
        statements[key] = statement
        if len(statements) > MAX_STATEMENTS:
            raise source.error(f"more than {MAX_STATEMENTS} attributes", 0)
    return statements


def job_of(statements: Mapping[str, Statement], *, base_directory: Path, dialect: str = DIALECT) -> Job:
    """Return the job that the attributes (by lower-case name) describe; raises JobSyntaxError."""
    values = Values(statements)
    warnings = []
    if (stdin := values.string("in")) not in _NULL_FILES:
        warnings.append(f"In is kept, but nothing reads {stdin} to the payload under `jobagent run`")
    initial = values.string("iwd")
    return Job(
        dialect=dialect,
        executable=values.string("cmd"),
        arguments=_arguments(values, statements),
        packages=values.packages(attributes.PACKAGES.lower()),
        namespace=_namespace(values),
        is_preinstalled_only=values.is_set(attributes.PACKAGES_PREINSTALLED.lower()),
        environment=MappingProxyType(_environment(values, statements)),
        inputs=inputs_of(_commas(values.string("transferinput")), warnings),
        outputs=_commas(values.string("transferoutput")),
        stdout=_file(values.string("out")),
        stderr=_file(values.string("err")),
        validation_command=values.string("validationcommand"),
        wall_limit_s=_integer(values, statements, "allowedjobduration", "allowedexecuteduration"),
        disk_bytes=_integer(values, statements, "requestdisk") << 10,
        memory_bytes=_integer(values, statements, "requestmemory") << 20,
        cpus=_integer(values, statements, "requestcpus"),
        requirements=statements["requirements"].text if "requirements" in statements else "",
        attributes=MappingProxyType({s.name: s.text for s in statements.values()}),
        warnings=tuple(warnings),
        base_directory=Path(initial) if initial.startswith("/") else base_directory / initial,
    )


def inputs_of(urls: Sequence[str], warnings: list[str]) -> tuple[InputFile, ...]:
    """Return the input files, named by the last part of their path; of one name the last wins, as in HTCondor."""
    found: dict[str, InputFile] = {}
    for url in urls:
        name = posixpath.basename(url.split("?")[0] if "://" in url else url)
        if not name:
            warnings.append(f"{url} names a directory: it is not copied")
        elif name in {".", ".."}:
            raise JobSyntaxError(f"input file {url[:200]!r} has no name")
        else:
            if name in found:
                warnings.append(f"{url} replaces {found[name].url}, which has the same name")
            found[name] = InputFile(url, name)
    return tuple(found.values())


def _arguments(values: Values, statements: Mapping[str, Statement]) -> tuple[str, ...]:
    if "arguments" in statements:
        return values.located("arguments", notation.split, values.string("arguments"))
    return notation.split_v1(values.string("args"))


def _environment(values: Values, statements: Mapping[str, Statement]) -> dict[str, str]:
    if "environment" in statements:
        return values.located("environment", _variables, values.string("environment"))
    return environment.parse_v1(values.string("env"), values.string("envdelim") or ";")


def _variables(text: str) -> dict[str, str]:
    try:
        return environment.parse(text)
    except ValueError as error:
        raise JobSyntaxError(str(error), remedy="double it to mean itself") from error


def _namespace(values: Values) -> str | None:
    return values.string(attributes.VIRTUAL_ORGANISATION.lower(), "x509userproxyvoname").lower() or None


def _integer(values: Values, statements: Mapping[str, Statement], *keys: str) -> int:
    """Return the first attribute that is a number; one that depends on the machine says nothing yet."""
    for key in keys:
        statement = statements.get(key)
        if statement is None or (statement.items is None and values.is_open(key)):
            continue
        text = values.string(key)
        if text:
            return values.located(key, quantities.whole, text)
    return 0


def _commas(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))


def _file(name: str) -> str:
    return "" if name in _NULL_FILES else name
