"""What the attributes of AliEn's JDL mean: statements → Job.

Every attribute is kept; one whose meaning nobody here carries out is also named in a warning.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from jobagent.condor.language import quantities
from jobagent.condor.language.evaluation import Values, text_of
from jobagent.condor.language.statements import Statement
from jobagent.model import InputFile, Job, PackageSpec

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
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:(//[^/]*)?")
_WILDCARDS = frozenset("*?[")


def job_of(statements: Mapping[str, Statement], *, base_directory: Path, warnings: Sequence[str]) -> Job:
    """Return the job that the statements (by lower-case name) describe; raises JobSyntaxError."""
    return _Reading(statements, base_directory, list(warnings)).job()


class _Reading:
    """The statements on their way to a job: their values, and what is to be warned of."""

    def __init__(self, statements: Mapping[str, Statement], base_directory: Path, warnings: list[str]) -> None:
        self._statements = statements
        self._values = Values(statements)
        self._base_directory = base_directory
        self._warnings = warnings

    def job(self) -> Job:
        outputs, names = self._outputs()
        inputs = self._inputs()
        packages = self._values.packages("packages")
        self._warn_of_what_is_not_done()
        return Job(
            dialect="jdl",
            executable=self._values.string("executable"),
            arguments=self._arguments(),
            packages=packages,
            namespace=self._values.string("virtualorganisation").lower() or None,
            is_preinstalled_only=self._values.is_set("packagespreinstalled"),
            environment=MappingProxyType(self._environment(packages)),
            inputs=inputs,
            outputs=outputs,
            stdout="stdout" if "stdout" in names else "",
            stderr="stderr" if "stderr" in names else "",
            validation_command=self._values.string("validationcommand"),
            wall_limit_s=self._values.quantity("ttl", quantities.seconds),
            disk_bytes=self._values.quantity("workdirectorysize", _size_in_mb),
            memory_bytes=self._memory(),
            cpus=self._values.quantity("cpucores", quantities.cores),
            requirements=self._requirements(),
            attributes=MappingProxyType({s.name: s.text for s in self._statements.values()}),
            warnings=tuple(self._warnings),
            base_directory=self._base_directory,
        )

    def _arguments(self) -> tuple[str, ...]:
        text = " ".join(self._values.strings("arguments"))
        try:
            return tuple(shlex.split(text))
        except ValueError as error:
            raise self._statements["arguments"].error(
                str(error).lower(), "close the quote, or write \\\\' for a single one"
            ) from error

    def _memory(self) -> int:
        for key in ("residentmemorysize", "memorysize", "virtualmemorysize"):
            if key in self._statements:
                return self._values.quantity(key, _size_in_mb)
        return 0

    def _requirements(self) -> str:
        statement = self._statements.get("requirements")
        if statement is None:
            return ""
        if statement.is_list or (statement.items and isinstance(statement.items[0], str)):
            raise statement.error("a string or list, expected an expression", "drop the quotes around the whole")
        return statement.text

    def _environment(self, packages: Sequence[PackageSpec]) -> dict[str, str]:
        variables: dict[str, str] = {}
        for name in self._values.strings("jdlvariables"):
            if not _VARIABLE.fullmatch(name):
                raise self._statements["jdlvariables"].error(f"{name[:80]!r} is not the name of an attribute")
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
        """Return the files that are to be downloaded, each once, by the last part of their path.

        Where that name is taken, the file goes to a numbered directory.
        """
        found: dict[str, InputFile] = {}
        taken: Counter[str] = Counter()
        for key in ("inputfile", "inputdata"):
            for text in self._values.strings(key):
                url, *options = (part.strip() for part in text.split(","))
                if url in found or "nodownload" in (option.lower() for option in options):
                    continue
                if _WILDCARDS & set(url):
                    self._warnings.append(f"{self._statements[key].name}: pattern {url} is not expanded")
                    continue
                name = self._last_part(key, url)
                taken[name] += 1
                if taken[name] > 1:
                    self._warnings.append(f"another input file is named {name}: it goes to {taken[name]}/{name}")
                    name = f"{taken[name]}/{name}"
                found[url] = InputFile(url, name)
        return tuple(found.values())

    def _last_part(self, key: str, url: str) -> str:
        parts = _SCHEME.sub("", url).split("?")[0].split("/")
        if parts[-1] in {"", ".", ".."} or ".." in parts:
            raise self._statements[key].error(f"{url[:200]!r} is not the name of a file")
        return parts[-1]

    def _outputs(self) -> tuple[tuple[str, ...], frozenset[str]]:
        """Return the files to keep, archives by their members, and all the names among them."""
        files: list[str] = []
        for key in ("output", "outputfile", "outputarchive"):
            for text in self._values.strings(key):
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
            raise self._statements[key].error(
                f"{name[:200]!r} is not a file of the working directory",
                "name it by its place there, as in results/histograms.root",
            )
        return name

    def _warn_of_what_is_not_done(self) -> None:
        for key, statement in self._statements.items():
            for word, meaning in NOT_DONE.items():
                if key == word or (word in {"split", "merge"} and key.startswith(word)):
                    self._warnings.append(f"{statement.name} is kept, but {meaning}")
        self._warnings[:] = dict.fromkeys(self._warnings)


def _size_in_mb(text: str) -> int:
    return quantities.size_bytes(text, default_unit="M")
