"""What the attributes of AliEn's JDL mean: statements → Job.

Every attribute is kept; one whose meaning nobody here carries out is also named in a warning.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from jobagent.condor import quantities
from jobagent.condor.expressions import Literal, Source, evaluate
from jobagent.condor.statements import Statement
from jobagent.errors import JobSyntaxError
from jobagent.model import InputFile, Job, PackageSpec

T = TypeVar("T")

MAX_CPUS = 100_000
RESOURCES = "resources"  # a file that AliEn's own agent wrote beside stdout and stderr
# Attributes that name work which neither the agent nor HTCondor does for AliEn's users.
NOT_DONE: Mapping[str, str] = {
    "split": "the job is not split",
    "merge": "outputs are not merged",
    "inputdatacollection": "collections are not expanded",
    "inputdatalist": "no list of input data is written",
    "inputbox": "use InputFile",
    "outputdir": "outputs go to where the job was submitted",
    "outputerrore": "failed jobs keep the outputs of Output",
    "guidfile": "no file of GUIDs is written",
    "maxwaitingtime": "the job waits as long as the queue lets it",
    "maxfailed": "each job counts for itself",
}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WILDCARDS = frozenset("*?[")


def job_of(
    source: Source, statements: Mapping[str, Statement], *, base_directory: Path, warnings: Sequence[str]
) -> Job:
    """Return the job that the statements (by lower-case name) describe; raises JobSyntaxError."""
    return _Reading(source, statements, base_directory, list(warnings)).job()


class _Reading:
    """The statements with what reading them as a job needs: positions for errors, values, warnings."""

    def __init__(
        self, source: Source, statements: Mapping[str, Statement], base_directory: Path, warnings: list[str]
    ) -> None:
        self._source = source
        self._statements = statements
        self._base_directory = base_directory
        self._warnings = warnings
        self._attributes = {s.name: s.text for s in statements.values()}

    def job(self) -> Job:
        outputs, names = self._outputs()
        inputs = self._inputs()
        packages = self._packages()
        self._warn_of_what_is_not_done()
        return Job(
            dialect="jdl",
            executable=self._string("executable"),
            arguments=self._arguments(),
            packages=packages,
            namespace=self._string("virtualorganisation").lower() or None,
            is_preinstalled_only=self._is_set("packagespreinstalled"),
            environment=MappingProxyType(self._environment(packages)),
            inputs=inputs,
            outputs=outputs,
            stdout="stdout" if "stdout" in names else "",
            stderr="stderr" if "stderr" in names else "",
            validation_command=self._string("validationcommand"),
            wall_limit_s=self._quantity("ttl", quantities.seconds),
            disk_bytes=self._quantity("workdirectorysize", _size_in_mb),
            memory_bytes=self._memory(),
            cpus=self._quantity("cpucores", _count),
            requirements=self._requirements(),
            attributes=MappingProxyType(self._attributes),
            warnings=tuple(self._warnings),
            base_directory=self._base_directory,
        )

    # values

    def _values(self, key: str) -> tuple[Literal, ...]:
        """The constants of an attribute, after evaluation where it is an expression; empty where it is absent."""
        statement = self._statements.get(key)
        if statement is None:
            return ()
        if statement.items is not None:
            return statement.items
        value = evaluate(statement.text, self._attributes)
        if value is None:
            raise self._error(
                key, f"{statement.name} has no value, expected one", "check the attributes it refers to"
            )
        return tuple(value) if isinstance(value, list) else (value,)

    def _strings(self, key: str) -> tuple[str, ...]:
        return tuple(text_of(value) for value in self._values(key))

    def _string(self, key: str) -> str:
        values = self._strings(key)
        if len(values) > 1:
            raise self._error(key, f"{self._statements[key].name} has {len(values)} values, expected one")
        return values[0].strip() if values else ""

    def _located(self, key: str, read: Callable[[str], T], text: str) -> T:
        """Return `read(text)`, with the attribute's position in its error."""
        try:
            return read(text)
        except JobSyntaxError as error:
            raise self._error(key, f"{self._statements[key].name}: {error.cause_line}", error.remedy) from error

    def _quantity(self, key: str, read: Callable[[str], int]) -> int:
        text = self._string(key)
        return self._located(key, read, text) if text else 0

    def _error(self, key: str, message: str, remedy: str = "") -> JobSyntaxError:
        return self._source.error(message, self._statements[key].offset, remedy=remedy)

    # attributes

    def _arguments(self) -> tuple[str, ...]:
        text = " ".join(self._strings("arguments"))
        try:
            return tuple(shlex.split(text))
        except ValueError as error:
            raise self._error(
                "arguments", f"Arguments: {str(error).lower()}", "close the quote, or write \\\\' for a single one"
            ) from error

    def _packages(self) -> tuple[PackageSpec, ...]:
        names = (name for text in self._strings("packages") for name in text.split(","))
        specs = [self._located("packages", PackageSpec.parse, name) for name in names if name.strip()]
        return tuple(dict.fromkeys(specs))

    def _is_set(self, key: str) -> bool:
        return self._string(key).lower() not in {"", "0", "false", "no"}

    def _memory(self) -> int:
        for key in ("residentmemorysize", "memorysize", "virtualmemorysize"):
            if key in self._statements:
                return self._quantity(key, _size_in_mb)
        return 0

    def _requirements(self) -> str:
        statement = self._statements.get("requirements")
        if statement is None:
            return ""
        if statement.is_list or (statement.items and isinstance(statement.items[0], str)):
            raise self._error(
                "requirements", "Requirements is a string or list, expected an expression", "drop quotes"
            )
        return statement.text

    def _environment(self, packages: Sequence[PackageSpec]) -> dict[str, str]:
        variables: dict[str, str] = {}
        for name in self._strings("jdlvariables"):
            if not _VARIABLE.fullmatch(name):
                raise self._error("jdlvariables", f"JDLVariables: {name[:80]!r} is not the name of an attribute")
            statement = self._statements.get(name.lower())
            if statement is None:
                self._warnings.append(f"JDLVariables names {name}, which the job does not set")
                continue
            text = "##".join(map(text_of, statement.items)) if statement.items is not None else statement.text
            variables[f"ALIEN_JDL_{name.upper()}"] = text
        if packages:
            variables["ALIEN_PACKAGES"] = " ".join(map(str, packages))
        return variables

    def _inputs(self) -> tuple[InputFile, ...]:
        found: dict[str, InputFile] = {}
        for key in ("inputfile", "inputdata"):
            for text in self._strings(key):
                url, *options = (part.strip() for part in text.split(","))
                if "nodownload" in (option.lower() for option in options):
                    continue
                if _WILDCARDS & set(url):
                    self._warnings.append(f"{self._statements[key].name}: pattern {url} is not expanded")
                    continue
                item = self._input(key, url, found)
                found.setdefault(item.name, item)
        return tuple(found.values())

    def _input(self, key: str, url: str, others: Mapping[str, InputFile]) -> InputFile:
        """Name the local copy: the last part of the path, in a numbered directory where that name is taken."""
        path = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*:(//[^/]*)?", "", url)
        name = base = posixpath.basename(path.split("?")[0])
        if base in {"", ".", ".."} or ".." in path.split("/"):
            raise self._error(key, f"{self._statements[key].name}: {url[:200]!r} is not the name of a file")
        directory = 1
        while name in others and others[name].url != url:
            directory += 1
            name = f"{directory}/{base}"
        if "/" in name and name not in others:
            self._warnings.append(f"a second input file is named {base}: it goes to {name}")
        return InputFile(url, name)

    def _outputs(self) -> tuple[tuple[str, ...], frozenset[str]]:
        """Return the files to keep, archives by their members, and all the names among them."""
        files: list[str] = []
        for key in ("output", "outputfile", "outputarchive"):
            for text in self._strings(key):
                names, at, storage = text.partition("@")
                archive, colon, members = names.rpartition(":")
                if colon or key == "outputarchive":
                    self._warnings.append(f"the files of archive {archive or names} are kept one by one")
                if at and storage:
                    self._warnings.append(f"storage element @{storage} is not used")
                files += [self._output(key, name.strip()) for name in (members if colon else names).split(",")]
        if RESOURCES in files:
            self._warnings.append(f"output file {RESOURCES} is left out: the agent's report has its numbers")
        kept = tuple(name for name in dict.fromkeys(files) if name not in {"", RESOURCES})
        return kept, frozenset(kept)

    def _output(self, key: str, name: str) -> str:
        if name.startswith(("/", "-")) or ".." in name.split("/"):
            raise self._error(
                key,
                f"output file {name[:200]!r} is not a file of the working directory",
                "name it by its place there, as in results/histograms.root",
            )
        return name

    def _warn_of_what_is_not_done(self) -> None:
        for key, statement in self._statements.items():
            for word, meaning in NOT_DONE.items():
                if key == word or (word in {"split", "merge"} and key.startswith(word)):
                    self._warnings.append(f"{statement.name} is kept, but {meaning}")
        self._warnings[:] = dict.fromkeys(self._warnings)


def text_of(value: Literal) -> str:
    """Return a constant as text: strings as they are, `true` and `false` in lower case."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _size_in_mb(text: str) -> int:
    return quantities.size_bytes(text, default_unit="M")


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 6 or int(text) > MAX_CPUS:
        raise JobSyntaxError(f"{text[:40]!r} is not a number of cores")
    return int(text)
