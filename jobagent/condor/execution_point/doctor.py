"""What is wrong with HTCondor and the agent on this machine: facts are gathered once, checks only look at them.

Each check is a function `Facts → findings`; none stops another.  A finding says what was found, what was expected
and what to do, on one line.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OLDEST_TESTED = (23, 9)
EXIT_HOOK_LOSES_OUTPUT = (25, 14)  # seen on 25.14.1: JOB_EXIT with file transfer kills the output's upload
MIN_FREE_BYTES = 5 << 30
MIN_FREE_INODES = 100_000
CLOCK_WARNING_S = 60.0
CLOCK_ERROR_S = 3600.0
OUR_PROGRAMS = ("node", "prepare", "machine", "transfer")
WEAK_METHODS = frozenset({"CLAIMTOBE", "ANONYMOUS"})


class Level(enum.StrEnum):
    """How bad a finding is; an error means that jobs with packages do not run, or do not run safely."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result; `remedy` is empty where nothing is to be done."""

    check: str
    level: Level
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """Free space of a directory that somebody needs."""

    purpose: str
    path: Path
    free_bytes: int
    free_inodes: int


@dataclass(frozen=True, slots=True)
class Web:
    """How a web server answered: `reason` is empty where it did."""

    purpose: str
    url: str
    reason: str = ""
    clock_offset_s: float = 0.0
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen on this machine.

    `parameters` are HTCondor's, by upper-case name, expanded; empty where HTCondor was not found.  `status` is the
    node service's answer, `service_error` why there is none.
    """

    parameters: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    bindings: str = ""
    condor_error: str = ""
    is_root: bool = False
    socket_mode: int = 0o600
    status: Mapping[str, Any] | None = None
    service_error: str = ""
    service_log: str = ""
    service_log_end: str = ""  # its last line, where the service does not answer
    disks: Sequence[Disk] = ()
    webs: Sequence[Web] = ()
    port_error: str = ""
    ports: str = "0"
    swarm: str = ""
    start_error: str = ""  # why an unprivileged user cannot start our programs

    def words(self, name: str) -> list[str]:
        """A list parameter, split at blanks and commas."""
        return self.parameters.get(name, "").replace(",", " ").split()


Check = Callable[[Facts], Iterator[Finding]]


def examine(facts: Facts) -> list[Finding]:
    """Return all findings, in the order of the checks."""
    return [finding for check in CHECKS for finding in check(facts)]


def versions(facts: Facts) -> Iterator[Finding]:
    """HTCondor is there, and of a version that was tested."""
    name = "HTCondor"
    if facts.condor_error:
        yield Finding(name, Level.ERROR, facts.condor_error, "install HTCondor, or set CONDOR_CONFIG and PATH")
        return
    if _version(facts.version) < OLDEST_TESTED:
        yield Finding(name, Level.WARNING, f"version {facts.version} is older than 23.9", "upgrade HTCondor")
    else:
        yield Finding(name, Level.OK, f"version {facts.version}")
    if facts.bindings and facts.bindings != facts.version:
        yield Finding(
            "bindings",
            Level.WARNING,
            f"Python bindings are {facts.bindings}, HTCondor is {facts.version}: FS authentication may fail",
            "authenticate with IDTOKENS (condor_token_create)",
        )


def settings(facts: Facts) -> Iterator[Finding]:
    """The agent's settings are in force."""
    if not facts.parameters:
        return
    name, remedy = "settings", "run jobagent condor configure, then condor_reconfig"
    wanted = {
        "DAEMON_LIST": "JOBAGENT" in facts.words("DAEMON_LIST"),
        "STARTD_CRON_JOBLIST": "JOBAGENT" in facts.words("STARTD_CRON_JOBLIST"),
        "JOBAGENT_HOOK_PREPARE_JOB_BEFORE_TRANSFER": bool(facts.words("JOBAGENT_HOOK_PREPARE_JOB_BEFORE_TRANSFER")),
        "STARTER_DEFAULT_JOB_HOOK_KEYWORD": "JOBAGENT" in _keyword(facts),
        "FILETRANSFER_PLUGINS": any(Path(p) == _ours(facts, "transfer") for p in facts.words("FILETRANSFER_PLUGINS")),
        "CHIRP_DELAYED_UPDATE_PREFIX": "JobAgent*" in facts.words("CHIRP_DELAYED_UPDATE_PREFIX"),
        "STARTER.PIPE_BUFFER_MAX": bool(facts.words("STARTER.PIPE_BUFFER_MAX")),
        "START": "JobAgentReady" in facts.parameters.get("START", ""),
    }
    missing = [parameter for parameter, is_there in wanted.items() if not is_there]
    if missing:
        yield Finding(name, Level.ERROR, f"the agent is not in {', '.join(missing)}", remedy)
    else:
        yield Finding(
            name, Level.OK, f"node service, hook, machine attributes and transfer plugin of {_libexec(facts)}"
        )
    if facts.words("JOBAGENT_HOOK_JOB_EXIT") and _version(facts.version)[:2] >= EXIT_HOOK_LOSES_OUTPUT:
        yield Finding(name, Level.ERROR, f"HTCondor {facts.version} loses output where JOB_EXIT meets file transfer",
                      "remove JOBAGENT_HOOK_JOB_EXIT; leases end without it")  # fmt: skip


def programs(facts: Facts) -> Iterator[Finding]:
    """The programs are there, can be started by jobs' users, and cannot be changed by them."""
    if not facts.words("JOBAGENT_LIBEXEC"):
        return
    name, problems = "programs", []
    for path in (_ours(facts, program) for program in OUR_PROGRAMS):
        if not path.is_file() or not os.access(path, os.X_OK):
            problems.append(f"{path} is missing or not executable")
        elif part := writable_by_others(path):
            problems.append(f"{part} is writable by everybody")
    if facts.start_error and not problems:
        problems.append(f"an unprivileged user cannot start {_ours(facts, 'transfer')}: {facts.start_error}")
    for problem in problems:
        yield Finding(
            name, Level.ERROR, problem, "run jobagent condor configure with an interpreter that all may read"
        )
    if not problems:
        yield Finding(name, Level.OK, f"{', '.join(OUR_PROGRAMS)} can be started and not be changed by jobs")


def transfer_plugins(facts: Facts) -> Iterator[Finding]:
    """Every transfer plugin exists: a missing one puts noise into messages, none at all crashes the starter."""
    if not facts.parameters:
        return
    name, listed = "transfer plugins", facts.words("FILETRANSFER_PLUGINS")
    missing = [path for path in listed if not os.access(path, os.X_OK)]
    if not listed:
        yield Finding(name, Level.ERROR, "FILETRANSFER_PLUGINS is empty: the starter crashes", "list one that exists")
    elif missing:
        yield Finding(name, Level.WARNING, f"{', '.join(missing)} do not exist", "list only what exists")
    else:
        yield Finding(name, Level.OK, f"{len(listed)} plugins exist")


def execute(facts: Facts) -> Iterator[Finding]:
    """EXECUTE belongs to HTCondor's own user: otherwise slots have no cores and jobs idle for ever."""
    if not facts.words("EXECUTE"):
        return
    name, path = "EXECUTE", Path(facts.parameters["EXECUTE"])
    try:
        uid = path.stat().st_uid
    except OSError as error:
        yield Finding(name, Level.ERROR, f"{path}: {error.strerror}", "make the directory")
        return
    wanted = condor_uid(facts)
    if wanted is not None and uid != wanted:
        yield Finding(name, Level.ERROR, f"{path} belongs to uid {uid}, not to that of CONDOR_IDS, {wanted}",
                      f"chown {wanted} {path}")  # fmt: skip
    elif wanted is None and facts.is_root and uid == 0:
        yield Finding(name, Level.ERROR, f"{path} belongs to root", f"chown condor {path}, or whom HTCondor runs as")
    else:
        yield Finding(name, Level.OK, f"{path} belongs to uid {uid}")


def security(facts: Facts) -> Iterator[Finding]:
    """Nobody comes in without a name."""
    if not facts.parameters:
        return
    methods = {m.upper() for name, value in facts.parameters.items() if name.endswith("_AUTHENTICATION_METHODS")
               for m in value.replace(",", " ").split()}  # fmt: skip
    if weak := sorted(methods & WEAK_METHODS):
        yield Finding("security", Level.WARNING, f"{', '.join(weak)} is allowed", "use IDTOKENS and FS")
    else:
        yield Finding(
            "security", Level.OK, f"authentication by {', '.join(sorted(methods)) or 'the default methods'}"
        )
    if facts.is_root and facts.socket_mode & 0o006 != 0o006 and facts.parameters:
        text = f"[node] socket_mode is {facts.socket_mode:#o}: jobs of other users cannot reach the node service"
        yield Finding("security", Level.ERROR, text, "set socket_mode = 0o666")


def service(facts: Facts) -> Iterator[Finding]:
    """The node service answers and is ready."""
    if facts.status is None:
        end = f"; its log ends with: {facts.service_log_end}" if facts.service_log_end else ""
        remedy = f"start HTCondor, or see {facts.service_log or 'its log'}"
        yield Finding("node service", Level.ERROR, facts.service_error + end, remedy)
    elif not facts.status["ready"]:
        yield Finding(
            "node service", Level.ERROR, f"not ready: {facts.status['reason']}", "mend what the reason names"
        )
    else:
        packages = len(facts.status["packages"])
        yield Finding(
            "node service", Level.OK, f"ready, {packages} packages, protection: {facts.status['protection']}"
        )


def ports(facts: Facts) -> Iterator[Finding]:
    """The swarm can listen, so that neighbours can fetch from here."""
    if facts.port_error:
        yield Finding(
            "ports", Level.WARNING, facts.port_error, "open the range of [swarm] ports, or give a larger one"
        )
    else:
        yield Finding("ports", Level.OK, f"[swarm] ports {facts.ports} can be listened on")


def disks(facts: Facts) -> Iterator[Finding]:
    """There is room for packages and jobs."""
    for disk in facts.disks:
        text = f"{disk.purpose} {disk.path}: {disk.free_bytes / 2**30:.1f} GB and {disk.free_inodes} inodes free"
        is_low = disk.free_bytes < MIN_FREE_BYTES or disk.free_inodes < MIN_FREE_INODES
        yield Finding("disk", Level.WARNING if is_low else Level.OK, text, "make room" if is_low else "")


def cache(facts: Facts) -> Iterator[Finding]:
    """Jobs see the packages: HTCondor gives each a /tmp of its own, and no cache is in that."""
    root = Path(str((facts.status or {}).get("root", "")))
    if not root.is_absolute():
        return
    execute_directory = Path(facts.parameters.get("EXECUTE", "/"))
    private = [Path(word.strip('"')) for word in facts.words("MOUNT_UNDER_SCRATCH") if word.startswith(("/", '"/'))]
    hiding = [p for p in private if root.is_relative_to(p) and not execute_directory.is_relative_to(p)]
    if hiding:
        yield Finding("cache", Level.ERROR, f"{root} is below {hiding[0]}, of which every job has its own"
                      " (MOUNT_UNDER_SCRATCH): jobs do not see their packages",
                      "set [sharedcache] root to a directory elsewhere, such as /var/cache/jobagent")  # fmt: skip
    else:
        yield Finding("cache", Level.OK, f"jobs see {root}")


def network(facts: Facts) -> Iterator[Finding]:
    """Catalogue and trackers answer, and agree with this node on the time."""
    if not facts.webs:
        remedy = "set [catalogue] urls and root in a file, and name that: jobagent --config FILE condor check"
        yield Finding("catalogue", Level.ERROR, "no catalogue is configured", remedy)
    for web in facts.webs:
        if web.reason:
            level = Level.WARNING if web.is_optional else Level.ERROR
            yield Finding(web.purpose, level, f"{web.url}: {web.reason}", "check URL, proxy and firewall")
        else:
            yield Finding(web.purpose, Level.OK, f"{web.url} answers")
    if facts.swarm:
        yield Finding("seeder", Level.OK, facts.swarm)
    offsets = [web.clock_offset_s for web in facts.webs if not web.reason and not web.is_optional]
    if offsets:
        offset = min(offsets, key=abs)
        level = Level.ERROR if abs(offset) > CLOCK_ERROR_S else Level.WARNING
        if abs(offset) <= CLOCK_WARNING_S:
            yield Finding("clock", Level.OK, f"within {max(abs(offset), 1):.0f} s of the catalogue's")
        else:
            yield Finding("clock", level, f"{offset:+.0f} s from the catalogue's", "synchronise it (chrony, ntpd)")


CHECKS: tuple[Check, ...] = (
    versions, settings, programs, transfer_plugins, execute, security, service, cache, ports, disks, network,
)  # fmt: skip


def writable_by_others(path: Path) -> Path | None:
    """Return the file or the directory above it that everybody may change, if there is one."""
    for part in (path, *path.parents):
        mode = part.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return part
    return None


def condor_uid(facts: Facts) -> int | None:
    """Return the user that the settings let a root-started HTCondor drop to; None where they name none."""
    uid = facts.parameters.get("CONDOR_IDS", "").partition(".")[0]
    return int(uid) if facts.is_root and uid.isdigit() else None


def _keyword(facts: Facts) -> list[str]:
    return facts.words("STARTER_JOB_HOOK_KEYWORD") + facts.words("STARTER_DEFAULT_JOB_HOOK_KEYWORD")


def _libexec(facts: Facts) -> Path:
    return Path(facts.parameters.get("JOBAGENT_LIBEXEC", ""))


def _ours(facts: Facts, name: str) -> Path:
    return _libexec(facts) / name


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
