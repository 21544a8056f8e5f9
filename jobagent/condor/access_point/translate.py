"""Job → HTCondor submission: the mapping table of `docs/jobs.md`, with nothing lost.

What HTCondor has a command for becomes that command; everything else is carried as an attribute of the job's ad under
its own name, or `JDL_` and its name where HTCondor uses that name itself.  What HTCondor will not do is warned of.
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from jobagent.condor.access_point import matching
from jobagent.condor.language import attributes
from jobagent.condor.language import submit_language as language
from jobagent.condor.language.alien_names import beside, is_alien_name
from jobagent.condor.language.expressions import scan
from jobagent.condor.language.lexemes import Source, literal, quote, render
from jobagent.errors import JobSyntaxError, ValidationFailed
from jobagent.model import InputFile, Job

WRAPPER = Path(__file__).with_name("validated.sh")
MEBI, KIBI = 1 << 20, 1 << 10
# Lets the prepare hook write a line into the job's user log.
TOLD_BY_THE_AGENT: Mapping[str, str] = {"MY.WantRemoteUpdates": "true"}

IsFile = Callable[[Path], bool]

_WILDCARDS = frozenset("*?[")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Attributes that a translation says in HTCondor's own words.
_SAID = frozenset({"arguments", "packages", "packagespreinstalled", "requirements", "rank"})
_SAID_BY_ADS = frozenset(
    {
        "cmd",
        "args",
        "env",
        "environment",
        "iwd",
        "in",
        "out",
        "err",
        "packages",
        "packagespreinstalled",
        "requirements",
    }
    | {"arguments", "rank", "virtualorganisation", "validationcommand", "mytype", "targettype", "universe"}
)
# What HTCondor itself writes into job ads: never set by hand.
_OWN = frozenset(
    {
        "user",
        "owner",
        "cmd",
        "args",
        "arguments",
        "env",
        "environment",
        "iwd",
        "in",
        "out",
        "err",
        "clusterid",
        "procid",
    }
    | {
        "globaljobid",
        "mytype",
        "targettype",
        "qdate",
        "exitcode",
        "exitstatus",
        "holdreason",
        "imagesize",
        "diskusage",
    }
    | {"executablesize", "enteredcurrentstatus", "completiondate", "memoryusage", "userlog", "rootdir", "coresize"}
    | {"buffersize", "bufferblocksize", "leavejobinqueue", "shouldtransferfiles", "whentotransferoutput"}
    | {"accountinggroup", "acctgroup", "niceuser", "rank", "requirements", "concurrencylimits", "currenthosts"}
)
_CLASHING: tuple[str, ...] = ("job", "request", "transfer", "periodic", "onexit", "condor", "remote", "x509")
_OWN_PREFIXES: tuple[str, ...] = (
    *_CLASHING,
    *(
        "num",
        "last",
        "total",
        "cumulative",
        "stage",
        "minhosts",
        "maxhosts",
        "want",
        "stream",
        "committed",
        "encrypt",
    ),
    *("autocluster", "allowedjob", "allowedexecute", "startd", "shadow", "hold", "release", "exit", "managed"),
)
_NOT_OWN = frozenset({"jobtag"})


@dataclass(frozen=True, slots=True)
class Submission:
    """A submit file: commands in the submit language, in order; the queue statement; what is to be warned of.

    `missing` names inputs that are neither files here nor anything that can be transferred.
    """

    commands: Mapping[str, str]
    queue: str = ""
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the submit file."""
        lines = []
        for name, value in self.commands.items():
            lines.append(f"{name} @=end\n{value}\n@end" if "\n" in value else f"{name} = {value}")
        return "\n".join([*lines, f"queue {self.queue}".rstrip(), ""])


def submission(job: Job, *, is_file: IsFile) -> Submission:
    """Return `job` as a submission; `is_file` tells what is on this machine.

    Raises:
        JobSyntaxError: Something in it cannot be said in a submit file.
    """
    return _rewritten(job) if job.dialect == "submit" else _Translation(job, is_file).submission()


def _rewritten(job: Job) -> Submission:
    """Return a submit file as it was, with the agent's wishes about machines where it has packages and says none."""
    commands: dict[str, str] = {}
    for name, text in job.attributes.items():
        if name != "queue":
            commands[name] = text if name.startswith("MY.") else _constant(text)
    said = {name.lower(): value for name, value in commands.items()}
    is_open = "$(" in said.get(f"my.{attributes.PACKAGES}".lower(), "")
    if job.packages and attributes.MACHINE_READY not in said.get("requirements", ""):
        name = next((name for name in commands if name.lower() == "requirements"), "requirements")
        parts = matching.requirements_of(
            commands.get(name, ""),
            job.packages,
            is_preinstalled_only=job.is_preinstalled_only and not is_open,
        )
        commands[name] = parts
    if job.packages and "rank" not in said and not is_open:
        commands["rank"] = matching.rank_of(job.packages)
    if job.packages and "my.wantremoteupdates" not in said:
        commands |= TOLD_BY_THE_AGENT
    return Submission(MappingProxyType(commands), _constant(job.attributes.get("queue", '""')))


def _constant(text: str) -> str:
    return str(literal(scan(Source(text), 0, until="").words))


class _Translation:
    """One job on its way into the submit language."""

    def __init__(self, job: Job, is_file: IsFile) -> None:
        self._job = job
        self._is_file = is_file
        self._warnings: list[str] = []
        self._missing: list[str] = []
        self._inputs: dict[str, str] = {}  # name on the node → what is transferred

    def submission(self) -> Submission:
        job = self._job
        for item in job.inputs:
            self._add_input(item)
        wanted = matched(job)
        self._warnings += wanted.warnings
        commands = self._program()
        commands["initialdir"] = language.text(str(job.base_directory)) if job.base_directory != Path() else ""
        commands["environment"] = language.variables(job.environment) if job.environment else ""
        commands["transfer_input_files"] = language.files(list(self._inputs.values()))
        commands |= self._outputs()
        commands |= {
            "should_transfer_files": "YES",
            "when_to_transfer_output": "ON_EXIT",
            "request_cpus": str(job.cpus or ""),
            "request_memory": f"{-(-job.memory_bytes // MEBI)}MB" if job.memory_bytes else "",
            "request_disk": f"{-(-job.disk_bytes // KIBI)}KB" if job.disk_bytes else "",
            "allowed_job_duration": str(job.wall_limit_s or ""),
            "requirements": language.expression(wanted.text) if wanted.text else "",
            "rank": language.expression(rank) if (rank := ranked(job)) else "",
        }
        commands |= TOLD_BY_THE_AGENT if job.packages else {}
        for name, text in {**asked(job), **carried(job)}.items():
            self._add_attribute(commands, name, text)
        return Submission(
            MappingProxyType({name: value for name, value in commands.items() if value}),
            warnings=tuple(dict.fromkeys(self._warnings)),
            missing=tuple(self._missing),
        )

    def _add_attribute(self, commands: dict[str, str], name: str, text: str) -> None:
        try:
            commands[f"MY.{name}"] = language.expression(text)
        except JobSyntaxError as error:
            self._warnings.append(f"{name} is left out: {error.cause_line}")

    def _add_input(self, item: InputFile) -> None:
        """Transfer a URL as it is, a file as it is, and an AliEn name as the file of that name beside the job."""
        source = item.url
        if is_alien_name(item.url):
            source = beside(item.url, self._exists) or ""
        elif "://" not in item.url and not self._exists(item.url):
            source = ""
        if not source:
            if not item.is_optional:
                self._missing.append(item.url)
            return
        if item.name != posixpath.basename(source.rstrip("/")):
            self._warnings.append(f"HTCondor calls input {item.url} by the last part of its name, not {item.name}")
        self._inputs.setdefault(item.name, source)

    def _exists(self, name: str) -> bool:
        return self._is_file(self._job.base_directory / name)

    def _program(self) -> dict[str, str]:
        """Return executable and arguments.

        A file here is transferred; a transferred input is made executable on the node; any other name is looked for
        on the PATH of the node, which the job's packages are part of.
        """
        job = self._job
        local = self._local(job.executable)
        name = posixpath.basename(job.executable)
        if not job.validation_command and local:
            return self._command(language.text(local), job.arguments)
        if not job.validation_command and name not in self._inputs:
            return self._command("/usr/bin/env", (name, *job.arguments), is_there=True) if name else {}
        words = ("", self._shipped(job.executable, local))
        if job.validation_command:
            validation = job.validation_command
            words = (self._shipped(validation, self._local(validation)), words[1])
        return self._command(str(WRAPPER), (*words, *job.arguments)) | self._hold_of_validation()

    def _command(self, executable: str, arguments: tuple[str, ...], *, is_there: bool = False) -> dict[str, str]:
        commands = {"executable": executable}
        if is_there:
            commands["transfer_executable"] = "false"
        commands["arguments"] = language.arguments(arguments) if arguments else ""
        return commands

    def _hold_of_validation(self) -> dict[str, str]:
        if not self._job.validation_command:
            return {}
        code = ValidationFailed.exit_code
        reason = quote("ValidationFailed: the Validationcommand refused the result, see the job's error file")
        return {
            "on_exit_hold": f"ExitCode =?= {code}",
            "on_exit_hold_reason": reason,
            "on_exit_hold_subcode": str(code),
        }

    def _shipped(self, name: str, local: str) -> str:
        """Return what to call a program on the node, transferred where it is a file here."""
        base = posixpath.basename(name)
        if local and base not in self._inputs:
            self._inputs[base] = local
        return f"./{base}" if base in self._inputs else base

    def _local(self, name: str) -> str:
        """Return the path of a program on this machine: as named, or its last part beside the job; or nothing."""
        base = posixpath.basename(name)
        candidates = [name, base] if posixpath.isabs(name) else [name]
        found = next((c for c in candidates if c and self._exists(c)), "")
        return str(self._job.base_directory / found) if found else ""

    def _outputs(self) -> dict[str, str]:
        job = self._job
        stdout, stderr = job.stdout or "stdout", job.stderr or "stderr"
        files = [name for name in job.outputs if name not in {stdout, stderr}]
        patterns = [name for name in files if _WILDCARDS & set(name)]
        if patterns:
            self._warnings.append(f"HTCondor knows no patterns ({', '.join(patterns)}): it brings back all new files")
        commands = {"output": language.text(stdout), "error": language.text(stderr), "log": "job.log"}
        if files and not patterns:
            commands["transfer_output_files"] = language.files(files)
        return commands


def matched(job: Job) -> matching.Matching:
    """Return which machines the job may run on."""
    own = matching.translated(job.requirements) if job.requirements else matching.Matching("")
    is_complete = job.dialect != "jdl" and attributes.MACHINE_READY in job.requirements
    if is_complete:
        return own
    text = matching.requirements_of(own.text, job.packages, is_preinstalled_only=job.is_preinstalled_only)
    return dataclasses.replace(own, text=text)


def ranked(job: Job) -> str:
    """Return the order among machines: the job's own, else by how many of its packages they have."""
    own = next((text for name, text in job.attributes.items() if name.lower() == "rank"), "")
    if own and job.dialect != "submit":
        return matching.translated(own).text
    return matching.rank_of(job.packages)


def asked(job: Job) -> dict[str, str]:
    """Return the attributes by which a job asks for its packages."""
    found: dict[str, str] = {}
    if job.packages:
        found[attributes.PACKAGES] = render([str(package) for package in job.packages])
    if job.is_preinstalled_only:
        found[attributes.PACKAGES_PREINSTALLED] = "true"
    if job.namespace:
        found[attributes.VIRTUAL_ORGANISATION] = quote(job.namespace)
    return found


def carried(job: Job) -> dict[str, str]:
    """Return the attributes that are kept although nothing else says them."""
    if job.dialect == "jdl":
        found = {
            name if _IDENTIFIER.fullmatch(name) and not _is_own(name, _CLASHING) else f"JDL_{name}": text
            for name, text in job.attributes.items()
            if name.lower() not in _SAID
        }
        return {**found, "OrigRequirements": job.requirements} if job.requirements else found
    if job.dialect == "submit":
        return {name.removeprefix("MY."): text for name, text in job.attributes.items() if name.startswith("MY.")}
    names = (name for name in job.attributes if name.lower() not in _SAID_BY_ADS and not _is_own(name, _OWN_PREFIXES))
    return {name: job.attributes[name] for name in names}


def _is_own(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether HTCondor itself uses an attribute of that name."""
    key = name.lower()
    return key not in _NOT_OWN and (key in _OWN or key.startswith(prefixes))
