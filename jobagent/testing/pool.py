"""A real HTCondor pool on loopback for tests and demonstrations, up in two seconds, gone without a trace.

`Pool` is one central instance (collector, negotiator, schedd) and any number of execution points, each with a
loopback address and a master of its own, as on machines of their own.  On the command line:

    python -m jobagent.testing.pool tree DIR [--suite sid|trixie] [--kind full|worker]
    python -m jobagent.testing.pool run [--suite …] [--execution-points N] [-- COMMAND …]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from jobagent.errors import SiteError
from jobagent.testing import accounts, condor_tree
from jobagent.testing.accounts import Account
from jobagent.testing.condor_tree import CondorTree
from jobagent.testing.instance import Instance, free_port
from jobagent.testing.joblog import JobLog

START_TIMEOUT_S = 60.0
_START_ATTEMPTS = 3  # another process may take the free port between probe and use
_POLL_S = 0.1


class Pool:
    """A pool of whoever calls; a context manager.

    With `as_root` (the default for root) the daemons start as root and drop privileges, and jobs are submitted by an
    unprivileged account; otherwise everything runs as one unprivileged account, `account` or oneself.  `config` is
    for every instance, `central_config` for the central one.
    """

    def __init__(
        self,
        tree: CondorTree,
        *,
        name: str = "pool.test",
        config: str = "",
        central_config: str = "",
        execution_points: int = 1,
        account: Account | None = None,
        directory: Path | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.tree = tree
        self.host = host  # the central instance's address
        self.name = name
        self.account = account or accounts.current()
        self.user = self.account if self.account.uid else accounts.of_user()
        self.directory = directory or Path(tempfile.mkdtemp(prefix="jobagent-pool-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.address = ""
        self.execution_points: list[Instance] = []
        self._config = config
        self._central_config = f"{config}\n{central_config}"
        self._wanted_points = execution_points
        self._is_own_directory = directory is None
        self._sandboxes: dict[int, Path] = {}
        self.central: Instance
        self.jobs: JobLog

    # life

    def __enter__(self) -> Pool:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until every slot can be matched."""
        for attempt in range(_START_ATTEMPTS):
            self._start_central()
            if self._comes_up(lambda: self.central_ads() >= {"Collector", "Negotiator", "Scheduler"}):
                break
            self.central.stop()
            if attempt == _START_ATTEMPTS - 1:
                raise SiteError(f"the pool did not come up: {self.central.log('MasterLog')[-800:]}")
        self._make_workspace()
        self.jobs = JobLog(self.central.directory / "log" / "EventLog")
        for number in range(self._wanted_points):
            self.add_execution_point(f"ep{number + 1}", wait=False)
        self.wait_for_machines()

    def stop(self) -> None:
        """Stop everything and remove the pool's directory; idempotent."""
        instances = [*self.execution_points, *([self.central] if hasattr(self, "central") else [])]
        for instance in instances:
            instance.ask_to_stop()
        for instance in instances:
            instance.stop()
        if self._is_own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    # parts

    def add_execution_point(
        self, name: str, *, config: str = "", wait: bool = True, environment: Mapping[str, str] | None = None
    ) -> Instance:
        """Start a machine of its own: master and startd on the next 127/8 address; `EPName` in its ad is `name`."""
        point = self.new_execution_point(name, config=config, environment=environment)
        point.start()
        if wait:
            self.wait_for_machines()
        return point

    def new_execution_point(
        self, name: str, *, config: str = "", environment: Mapping[str, str] | None = None
    ) -> Instance:
        """Write an execution point without starting it; its `directory` is known, for configuration that names it."""
        settings = {
            "COLLECTOR_HOST": self.address,
            "CONDOR_HOST": self.address.rpartition(":")[0],
            "NETWORK_INTERFACE": f"127.0.0.{len(self.execution_points) + 2}",
            "SHARED_PORT_PORT": "0",
            "DAEMON_LIST": "MASTER, SHARED_PORT, STARTD",
            "TRUST_DOMAIN": self.name,
            "STARTD_NAME": name,
            "MASTER_NAME": name,
        }
        point = Instance(
            self.tree,
            self.directory / name,
            settings=settings,
            config=f'EPName = "{name}"\nSTARTD_ATTRS = $(STARTD_ATTRS) EPName\n{self._config}\n{config}',
            account=self.account,
            environment=environment,
        )
        point.write(signing_key=(self.central.directory / "passwords.d" / "POOL").read_bytes())
        self.execution_points.append(point)
        return point

    def wait_for_machines(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when every running execution point offers its slots."""
        wanted = {point.directory.name for point in self.execution_points if point.is_running}

        def offered() -> bool:
            rows = self.central.try_tool("condor_status", "-af", "Name", "TotalCpus").stdout.splitlines()
            names = {row.split()[0].split("@")[1] for row in rows if not row.endswith((" 0", " 0.0"))}
            return wanted <= names

        if not self._comes_up(offered, timeout_s):
            logs = "\n".join(point.log("StartLog")[-500:] for point in self.execution_points)
            raise SiteError(f"not all of {sorted(wanted)} offered slots within {timeout_s:g} s: {logs}")

    def wait_until(self, is_so: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when `is_so` is true of the pool; raises SiteError where it does not become so in time."""
        if not self._comes_up(is_so, timeout_s):
            raise SiteError(f"the pool did not come to the expected state within {timeout_s:g} s")

    def token(self, identity: str, *authorizations: str, lifetime_s: int = 86400) -> str:
        """Return an IDTOKEN of this pool for `identity`, limited to `authorizations` where any are given."""
        limits = [word for level in authorizations for word in ("-authz", level)]
        return self.central.tool(
            "condor_token_create", "-identity", identity, "-lifetime", str(lifetime_s), *limits
        ).strip()

    def client_config(self, directory: Path) -> Path:
        """Write a configuration for clients of any version (bindings): address and a token; return its path."""
        tokens = directory / "tokens.d"
        tokens.mkdir(parents=True, exist_ok=True)
        tokens.chmod(0o700)
        token = tokens / "pool"
        token.write_text(self.token(f"{self.user.name}@{self.name}") + "\n")
        token.chmod(0o600)
        config = directory / "condor_config"
        schedd = self.central.tool("condor_status", "-schedd", "-af", "Name").strip()
        config.write_text(
            f"COLLECTOR_HOST = {self.address}\nSCHEDD_HOST = {schedd}\nSEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS\n"
            f"SEC_TOKEN_DIRECTORY = {tokens}\nUID_DOMAIN = pool.test\nTRUST_DOMAIN = {self.name}\n"
            f"ENABLE_IPV6 = false\nLOCAL_CONFIG_DIR =\n"
            f"LOG = {directory}\nLOCK = {directory}\nNETWORK_INTERFACE = 127.0.0.1\n"
        )
        return config

    # jobs

    def submit(self, description: str, *, files: Mapping[str, str | bytes] | None = None) -> int:
        """Submit as the pool's user from a new directory with `files` in it; return the cluster.

        A submit file without `log`, `output` and `error` gets them there: see `sandbox`.
        """
        sandbox = Path(tempfile.mkdtemp(prefix="job-", dir=self.workspace))
        for name, content in (files or {}).items():
            path = sandbox / name
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            path.chmod(0o755)
        for path in (sandbox, *sandbox.iterdir()):
            os.chown(path, self.user.uid, self.user.gid)
        defaults = (
            f"initialdir = {sandbox}\nlog = job.log\noutput = out.$(Process)\nerror = err.$(Process)\n"
            "should_transfer_files = YES\nwhen_to_transfer_output = ON_EXIT\nrequest_cpus = 1\n"
            "request_memory = 64\nrequest_disk = 1024\n"
        )
        output = self.central.tool(
            "condor_submit", "-terse", "-", account=self.user, stdin=defaults + description, directory=sandbox
        )
        cluster = int(output.split(".")[0])
        self._sandboxes[cluster] = sandbox
        return cluster

    def sandbox(self, cluster: int) -> Path:
        """The directory that a cluster was submitted from: `job.log`, `out.0`, `err.0`, …"""
        return self._sandboxes[cluster]

    @property
    def workspace(self) -> Path:
        """Where the pool's user submits from."""
        return self.directory / "work"

    def history(self, cluster: int, *attributes: str, timeout_s: float = 20.0) -> list[dict[str, Any]]:
        """Return the ads of a cluster's ended jobs by process, waiting for the schedd to write its history."""
        selection = ["-attributes", ",".join((*attributes, "ProcId", "JobStatus"))] if attributes else []
        wanted = self.jobs.size(cluster)
        deadline = time.monotonic() + timeout_s
        while True:
            ads = _json(self.central.try_tool("condor_history", "-json", *selection, str(cluster)).stdout)
            if len(ads) >= wanted or time.monotonic() > deadline:
                return sorted(ads, key=lambda ad: int(ad.get("ProcId", 0)))
            time.sleep(_POLL_S)

    def queue(self, cluster: int) -> list[dict[str, Any]]:
        """Return the ads of a cluster's jobs in the queue, by process."""
        ads = _json(self.central.tool("condor_q", "-allusers", "-json", str(cluster)))
        return sorted(ads, key=lambda ad: int(ad["ProcId"]))

    def machines(self, *attributes: str) -> list[dict[str, Any]]:
        """Return the ads of all slots."""
        selection = ["-attributes", ",".join((*attributes, "Name"))] if attributes else []
        return _json(self.central.tool("condor_status", "-json", *selection))

    def central_ads(self) -> set[str]:
        """The types of ads that the collector holds; empty while it does not answer."""
        return set(self.central.try_tool("condor_status", "-any", "-af", "MyType").stdout.split())

    # inside

    def _start_central(self) -> None:
        port = free_port(self.host)
        self.address = f"{self.host}:{port}"
        settings = {
            "COLLECTOR_HOST": self.address,
            "CONDOR_HOST": self.host,
            "NETWORK_INTERFACE": self.host,
            "SHARED_PORT_PORT": str(port),
            "DAEMON_LIST": "MASTER, SHARED_PORT, COLLECTOR, NEGOTIATOR, SCHEDD",
            "TRUST_DOMAIN": self.name,
            "C_GAHP_LOG": str(self.workspace / "CGAHPLog"),  # these two go to /tmp otherwise, and stay there
            "C_GAHP_WORKER_THREAD_LOG": str(self.workspace / "CGAHPWorkerLog"),
        }
        self.central = Instance(
            self.tree, self.directory / "cm", settings=settings, config=self._central_config, account=self.account
        )
        self.central.write()
        self.central.start()

    def _make_workspace(self) -> None:
        self.workspace.mkdir(exist_ok=True)
        os.chown(self.workspace, self.user.uid, self.user.gid)

    def _comes_up(self, is_up: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> bool:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self.central.is_running:
            if is_up():
                return True
            time.sleep(_POLL_S)
        return False


def _json(text: str) -> list[dict[str, Any]]:
    return list(json.loads(text)) if text.strip() else []


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m jobagent.testing.pool", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    tree = commands.add_parser("tree", help="make a relocatable HTCondor tree")
    tree.add_argument("destination", type=Path, nargs="?", help="where to copy it; without: only the cached one")
    tree.add_argument("--kind", choices=condor_tree.KINDS, default="full")
    run = commands.add_parser("run", help="run a pool, and a command (default: a shell) that can use it")
    run.add_argument("--execution-points", type=int, default=2, metavar="N")
    run.add_argument("program", nargs="*", metavar="COMMAND")
    for command in (tree, run):
        command.add_argument("--suite", choices=condor_tree.SUITES, default="sid")
    options = parser.parse_args(argv)
    if options.command == "tree":
        made = (
            condor_tree.install(options.destination, options.suite, options.kind)
            if options.destination
            else condor_tree.cached(options.suite, options.kind)
        )
        print(f"HTCondor {made.version} in {made.path}")
        return 0
    with tempfile.TemporaryDirectory(prefix="jobagent-tree-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        installed = condor_tree.install(Path(directory) / "condor", options.suite)
        with Pool(installed, execution_points=options.execution_points) as pool:
            print(f"HTCondor {installed.version} at {pool.address}; jobs run as {pool.user.name}", file=sys.stderr)
            program = options.program or [os.environ.get("SHELL", "/bin/sh")]
            return subprocess.run(program, env={**os.environ, **pool.central.environment}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
