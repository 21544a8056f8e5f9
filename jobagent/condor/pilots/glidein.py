"""The glide-in: a slot of a batch system becomes a slot of the VO's pool, for many jobs, until idle or out of time.

Started by the pilot script with nothing but the runtime.  The node service comes first, because it brings the rest by
swarm: HTCondor's worker files, and the agent where the catalogue has another one than the pilot brought; then this
process replaces itself by that one, which finds everything in place.  Imports neither libtorrent nor tuf: it lives as
long as the slot.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobagent
from jobagent import durable
from jobagent.condor.execution_point import configure
from jobagent.condor.pilots import glidein_config, offspring, slot
from jobagent.condor.pilots.glidein_settings import GlideinSettings
from jobagent.config import Config, NodeSettings, SiteSettings
from jobagent.errors import ConfigurationError, JobAgentError, PoolTokenRefused, SiteError, SupplyError
from jobagent.node import client

log = logging.getLogger("jobagent.glidein")

SERVICE_START_S = 30.0
SERVICE_SILENCE_S = 120.0
PING_TIMEOUT_S = 30.0
MASTER_GRACE = ((signal.SIGTERM, 12.0), (signal.SIGQUIT, 4.0))  # slow with vacating jobs, then fast
SERVICE_GRACE = ((signal.SIGTERM, 3.0),)
RESTART_PAUSE_S = 2.0
MAX_SERVICE_RESTARTS = 20
MIN_FREE_BYTES = 500_000_000
AGENT_TREE = "JOBAGENT_AGENT_TREE"  # set in the agent that came as a package
_KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "TZ", "JOBAGENT_PILOT_ID")  # of the environment, for HTCondor's daemons
_FOREIGN = ("_CONDOR_", "CONDOR_", "LD_", "PYTHON")  # the site's own HTCondor, and what would change ours


class ServiceRefused(JobAgentError):
    """The node service could not bring what the glide-in needs; exit code and kind are the service's."""

    def __init__(self, error: client.ServiceError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code


@dataclass(frozen=True, slots=True)
class Trees:
    """Installed packages that the glide-in runs; `agent` is None where the pilot's own agent does."""

    condor: Path
    agent: Path | None


class Glidein:
    """One glide-in: `run` returns when it is over.  Everything that it starts is gone then."""

    def __init__(self, config: Config, config_file: Path, environ: Mapping[str, str], directory: Path) -> None:
        self._config = config
        self._config_file = config_file
        self._settings = config.get(GlideinSettings)
        self._environ = {k: v for k, v in environ.items() if not k.startswith(_FOREIGN)}
        self._given = environ
        self._directory = directory / "glidein"
        socket = config.get(NodeSettings).socket
        self._socket = socket if socket != Path() else directory / "node.sock"
        self._service: subprocess.Popen[bytes] | None = None
        self._share: subprocess.Popen[bytes] | None = None
        self._master: subprocess.Popen[bytes] | None = None
        self._restarts = 0

    def run(self) -> int:
        """Land, work, end; return the exit code.

        Raises:
            JobAgentError: Why it could not start, by who must act.
        """
        if not self._settings.pool:
            raise ConfigurationError(f"{self._config.source}: no pool", remedy='set [glidein] pool = "host:9618"')
        token = slot.read_token(self._settings, self._given, now_s=time.time())
        for path in (self._directory, *glidein_config.directories(self._directory).values()):
            path.mkdir(mode=0o700 if path.name.endswith(".d") else 0o755, parents=True, exist_ok=True)
        with Wakeup() as wakeup:
            try:
                self._start_share()
                self._start_service()
                trees = self._bring_packages()
                self._become(trees.agent)
                self._start_master(trees, token)
                return self._supervise(wakeup)
            finally:
                self._end()

    # --- parts

    def _start_service(self) -> None:
        argv = [*own_command(self._given), "--config", self._config_file, "node", "--socket", self._socket]
        environment = self._environ | {"JOBAGENT_CONFIG": str(self._config_file)}
        self._service = offspring.start(argv, environment, self._log_file("node"), death_signal=signal.SIGTERM)

    def _bring_packages(self) -> Trees:
        """Ask for HTCondor and the agent; they are leased to this process, whatever becomes of the service."""
        wanted = [name for name in (self._settings.condor, self._settings.agent) if name]
        log.info("packages %s", " ".join(wanted))
        try:
            answer = client.ask(
                str(self._socket),
                "prepare",
                {"packages": wanted, "job_id": "glidein", "holder": os.getpid()},
                on_event=_show,
                timeout_s=SERVICE_SILENCE_S,
                wait_for_service_s=SERVICE_START_S,
            )
        except client.ServiceError as error:
            self._tell_logs("node")
            raise ServiceRefused(error) from error
        trees = {package["id"]: Path(package["tree"]) for package in answer["packages"]}
        for package in answer["packages"]:
            log.info(
                "ready %s seeder_bytes=%d neighbour_bytes=%d web_bytes=%d cache_hit=%s",
                *(package[key] for key in ("id", "seeder_bytes", "neighbour_bytes", "web_bytes", "cache_hit")),
            )
        agent = tree_of(self._settings.agent, trees) if self._settings.agent else None
        return Trees(tree_of(self._settings.condor, trees), agent)

    def _become(self, agent: Path | None) -> None:
        """Go on as the agent of the catalogue where that is another one; the pid, and with it the leases, stay."""
        if (
            agent is None
            or self._given.get(AGENT_TREE) == str(agent)
            or build_of(agent / "site") == build_of(_code())
        ):
            return
        log.info("going on as the agent in %s", agent)
        for child in (self._service, self._share):
            if child is not None:
                offspring.end(child, SERVICE_GRACE)
        environment = {**self._given, AGENT_TREE: str(agent), "JOBAGENT_PYTHON": sys.executable}
        program = str(agent / "bin" / "jobagent")
        os.execve(program, [program, "--config", str(self._config_file), "glidein"], environment)

    def _start_share(self) -> None:
        """Offer the runtime to pilots near by, where the pilot script left its archive."""
        archive = self._given.get("JOBAGENT_RUNTIME_ARCHIVE", "")
        urls = self._given.get("JOBAGENT_OFFER_URLS", "")
        if not archive or not urls or not Path(archive).is_file():
            return
        argv: list[str | Path] = [*_python(), "-m", "jobagent.condor.pilots.neighbour", archive, *urls.split()]
        if address := self._config.get(SiteSettings).address:
            argv += ["--address", address]
        self._share = offspring.start(argv, self._environ, self._log_file("share"), death_signal=signal.SIGTERM)

    def _start_master(self, trees: Trees, token: str) -> None:
        token_file = self._directory / "tokens.d" / "pool"
        durable.write(token_file, token.encode() + b"\n", mode=0o600)
        facts = self._facts(trees)
        if facts.reason:
            log.error("self-check: %s; no jobs are taken", facts.reason)
        config = self._directory / "condor_config"
        durable.write(config, glidein_config.text(facts).encode())
        environment = {k: self._environ[k] for k in _KEPT if k in self._environ}
        environment |= {"CONDOR_CONFIG": str(config)}
        self._ping(trees.condor, environment)
        argv: list[str | Path] = [trees.condor / "sbin" / "condor_master", "-f"]
        self._master = offspring.start(argv, environment, self._log_file("master"), death_signal=signal.SIGQUIT)
        log.info("condor_master started cpus=%d memory_mb=%d ends=%d", *_numbers(facts.slot))

    def _facts(self, trees: Trees) -> glidein_config.Facts:
        libexec = self._directory / "libexec"
        installation = configure.Installation(
            (sys.executable,), _code(), libexec, self._directory / "config.d", self._socket, self._config_file
        )
        programs = [f for f in configure.plan(installation) if f.path.parent == libexec]
        configure.write(programs)
        given = slot.of_environment(
            self._settings,
            self._given,
            now_s=time.time(),
            uptime_s=slot.uptime_s(),
            node_memory_mb=slot.node_memory_mb(),
        )
        site = self._config.get(SiteSettings)
        return glidein_config.Facts(
            directory=self._directory,
            tree=trees.condor,
            libexec=libexec,
            settings=self._settings,
            slot=given,
            agent_config=configure.template(configure.EXECUTION_POINT),
            address=site.address,
            site=site.name or self._given.get("JOBAGENT_SITE", ""),
            pilot=self._given.get("JOBAGENT_PILOT_ID", str(os.getpid())),
            batch_job=self._given.get("JOBAGENT_BATCH_JOB", ""),
            reason=self_check(given, self._settings, shutil.disk_usage(self._directory).free, now_s=time.time()),
        )

    def _ping(self, tree: Path, environment: Mapping[str, str]) -> None:
        """Ask the pool whether it takes us, which a master would only write into its log, again and again."""
        argv = [str(tree / "bin" / "condor_ping"), "-verbose", "-type", "collector", "ADVERTISE_STARTD"]
        try:
            done = subprocess.run(
                argv, env=environment, capture_output=True, text=True, timeout=PING_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SupplyError(f"the pool {self._settings.pool} does not answer: {error}") from error
        if done.returncode == 0:
            return
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        if "AUTHENTICATE" in said or "AUTHORIZATION" in said.upper() or "DENIED" in said.upper():
            raise PoolTokenRefused(f"the pool {self._settings.pool} refuses the pilot's token: {said}")
        raise SupplyError(f"the pool {self._settings.pool} cannot be reached: {said}")

    # --- life

    def _supervise(self, wakeup: Wakeup) -> int:
        """Wait for the end: the master's own, a signal.  A node service that dies is started again."""
        assert self._master is not None and self._service is not None
        while True:
            wakeup.wait([self._master.pid, self._service.pid])
            if wakeup.signals:
                log.info("signal %d: ending", wakeup.signals[0])
                return 0
            if (code := self._master.poll()) is not None:
                if code == 0:
                    log.info("condor_master has ended")
                    return 0
                self._tell_logs("master", "MasterLog", "StartLog")
                raise SiteError(f"condor_master ended with {code}; see the lines above")
            if self._service.poll() is not None:
                self._restart_service()

    def _restart_service(self) -> None:
        assert self._service is not None
        self._restarts += 1
        log.warning("the node service ended with %s: restart %d", self._service.returncode, self._restarts)
        if self._restarts > MAX_SERVICE_RESTARTS:
            self._tell_logs("node")
            raise SiteError(f"the node service ended {self._restarts} times")
        time.sleep(RESTART_PAUSE_S)
        self._start_service()

    def _end(self) -> None:
        if self._share is not None and self._share.poll() is None:
            self._share.terminate()  # nobody should be sent here any more
        for child, grace in (
            (self._master, MASTER_GRACE),
            (self._service, SERVICE_GRACE),
            (self._share, SERVICE_GRACE),
        ):
            if child is not None:
                offspring.end(child, grace)
        if left := offspring.end_descendants():
            log.warning("%d processes had to be ended: %s", len(left), ", ".join(left))

    def _log_file(self, name: str) -> Path:
        return self._directory / "log" / f"{name}.log"

    def _tell_logs(self, *names: str) -> None:
        """Repeat the ends of logs, which go with the directory."""
        for name in names:
            path = self._directory / "log" / (name if name.endswith("Log") else f"{name}.log")
            if path.is_file():
                for line in path.read_text(errors="replace").splitlines()[-15:]:
                    log.error("%s: %s", path.name, line)


class Wakeup:
    """Waits for ends of processes and for signals, without a race between the two.  A context manager."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Wakeup:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _note(self, number: int, frame: object) -> None:
        self.signals.append(number)
        os.write(self._write, b"!")

    def wait(self, pids: Sequence[int], timeout_s: float | None = None) -> None:
        """Return when one of the processes has ended or a signal came."""
        opened: list[int] = []
        try:
            for pid in pids:
                try:
                    opened.append(os.pidfd_open(pid))
                except ProcessLookupError:
                    return
            select.select([self._read, *opened], [], [], timeout_s)
        finally:
            for descriptor in opened:
                os.close(descriptor)


def self_check(given: slot.Slot, settings: GlideinSettings, free_bytes: int, *, now_s: float) -> str:
    """Return why this node should take no jobs, or an empty string."""
    if free_bytes < MIN_FREE_BYTES:
        return f"{free_bytes >> 20} MB free for jobs, {MIN_FREE_BYTES >> 20} MB are needed"
    if given.ends_s and given.ends_s - settings.retire_s <= now_s:
        left_s = given.ends_s - now_s
        return f"the slot's time ends in {left_s:.0f} s, no job is taken in its last {settings.retire_s} s"
    return ""


def own_command(environ: Mapping[str, str]) -> list[str | Path]:
    """Return the argv that starts this agent's own command."""
    tree = environ.get(AGENT_TREE)
    return [Path(tree) / "bin" / "jobagent"] if tree else [*_python(), "-m", "jobagent"]


def build_of(site: Path) -> str:
    """Return which sources the agent below `site` was made of; a checkout, which is no build, differs from all."""
    try:
        return (site / "jobagent" / "BUILD").read_text(encoding="ascii").strip()
    except OSError:
        return f"unbuilt {site}"


def tree_of(spec: str, trees: Mapping[str, Path]) -> Path:
    """Return the tree of the package that `spec` asked for, among full names."""
    wanted = spec.rpartition("@")[2].partition("::")[0]
    return next(tree for name, tree in trees.items() if name.rpartition("@")[2].partition("::")[0] == wanted)


def _show(event: Mapping[str, Any]) -> None:
    if event.get("event") not in {"alive", "progress"}:
        log.debug("node service: %s", dict(event))


def _numbers(given: slot.Slot) -> tuple[int, int, int]:
    return given.cpus, given.memory_mb, given.ends_s


def _code() -> Path:
    return Path(jobagent.__file__).resolve().parent.parent


def _python() -> list[str]:
    return [sys.executable, "-I"]
