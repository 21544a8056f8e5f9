"""One condor_master with its daemons under one directory: written, started, stopped, nothing left behind."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from jobagent.errors import ConfigurationError, SiteError
from jobagent.testing import accounts
from jobagent.testing.accounts import Account
from jobagent.testing.condor_tree import CondorTree

STOP_GRACE_S = 5.0
TOOL_TIMEOUT_S = 30.0


class ToolFailed(SiteError):
    """An HTCondor tool failed; the message holds what it wrote to standard error."""

    def __init__(self, name: str, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"{name} ended with {done.returncode}: {done.stderr or done.stdout}")


class Instance:
    """An HTCondor instance: `condor_master` and what its DAEMON_LIST names, on one loopback address.

    `directory` becomes its LOCAL_DIR and must be readable by `account` and by those who run jobs; keep its path
    short, because unix sockets go below it.  `account` starts the master; `settings` come before the base
    configuration and `config` after it.
    """

    def __init__(
        self,
        tree: CondorTree,
        directory: Path,
        *,
        settings: Mapping[str, str],
        config: str = "",
        account: Account | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.tree = tree
        self.directory = directory
        self.account = account or accounts.current()
        self.config_file = directory / "condor_config"
        self._settings = dict(settings)
        self._config = config
        self._extra_environment = dict(environment or {})
        self._warden: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its daemons, and of tools that are to talk to it."""
        return {
            "PATH": f"{self.tree.search_path}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "CONDOR_CONFIG": str(self.config_file),
            **self._extra_environment,
        }

    @property
    def address(self) -> str:
        """The loopback address that is this machine's own."""
        return self._settings["NETWORK_INTERFACE"]

    @property
    def is_root(self) -> bool:
        """Whether its master runs as root."""
        return self.account.uid == 0

    def write(self, *, signing_key: bytes | None = None) -> None:
        """Make the directories, the configuration, and the signing key of the pool (`signing_key` shares one)."""
        owner = accounts.of_daemons() if self.is_root else self.account
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        for name in ("log", "run", "lock", "spool", "execute", "config.d"):
            _own(self.directory / name, owner, 0o755)
        for name in ("passwords.d", "tokens.d"):
            _own(self.directory / name, self.account, 0o700)
        key = self.directory / "passwords.d" / "POOL"
        key.write_bytes(signing_key or secrets.token_hex(32).encode())
        key.chmod(0o600)
        os.chown(key, self.account.uid, self.account.gid)
        settings = {
            "RELEASE_DIR": str(self.tree.path),
            "LOCAL_DIR": str(self.directory),
            "POOL_USER": self.account.name,
            "DAEMON_USER": owner.name,
            **({"CONDOR_IDS": f"{owner.uid}.{owner.gid}"} if self.is_root else {}),
            **self._settings,
        }
        base = resources.files("jobagent.testing").joinpath("pool.conf").read_text()
        lines = [f"{name} = {value}" for name, value in settings.items()]
        self.config_file.write_text("\n".join([*lines, base]))
        self.configure("50-instance", self._config)

    def configure(self, name: str, text: str) -> Path:
        """Write a file of `config.d`; it takes effect at the next start or `condor_reconfig`."""
        path = self.directory / "config.d" / name
        path.write_text(text + "\n")
        path.chmod(0o644)
        return path

    def start(self) -> None:
        """Start the master under a warden; returns at once."""
        if self._warden is not None:
            raise ConfigurationError(f"{self.directory} runs already")
        user = [] if self.account.uid == os.geteuid() else ["--user", f"{self.account.uid}:{self.account.gid}"]
        master = [
            str(self.tree.program("condor_master")),
            "-f",
            "-pidfile",
            str(self.directory / "run" / "master.pid"),
        ]
        warden = [
            sys.executable,
            "-m",
            "jobagent.testing.warden",
            *user,
            "--grace",
            f"{STOP_GRACE_S:g}",
            "--",
            *master,
        ]
        with open(self.directory / "log" / "master.out", "ab") as output:
            self._warden = subprocess.Popen(
                warden, stdin=subprocess.PIPE, stdout=output, stderr=output, env=self.environment
            )

    @property
    def is_running(self) -> bool:
        """Whether its master has not ended."""
        return self._warden is not None and self._warden.poll() is None

    @property
    def pid(self) -> int:
        """The process that all of its processes descend from; it survives the master's end by a moment only."""
        if self._warden is None:
            raise ConfigurationError(f"{self.directory} does not run")
        return self._warden.pid

    def ask_to_stop(self) -> None:
        """Begin to stop without waiting, so that several instances stop at the same time; idempotent."""
        if self._warden is not None and self._warden.stdin is not None:
            self._warden.stdin.close()

    def stop(self) -> None:
        """Stop the master and everything that descends from it; idempotent."""
        self.ask_to_stop()
        warden, self._warden = self._warden, None
        if warden is None:
            return
        try:
            warden.wait(STOP_GRACE_S + 10)
        except subprocess.TimeoutExpired:
            warden.send_signal(signal.SIGKILL)
            warden.wait()
            raise

    def tool(
        self,
        name: str,
        *arguments: str,
        account: Account | None = None,
        stdin: str = "",
        directory: Path | None = None,
    ) -> str:
        """Run an HTCondor tool against this instance and return its output.

        Raises:
            ToolFailed: It ended with another code than 0.
        """
        done = self.try_tool(name, *arguments, account=account, stdin=stdin, directory=directory)
        if done.returncode:
            raise ToolFailed(name, done)
        return done.stdout

    def try_tool(
        self,
        name: str,
        *arguments: str,
        account: Account | None = None,
        stdin: str = "",
        directory: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run an HTCondor tool and return how it ended, as `account` in `directory` (default: its own)."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [str(self.tree.program(name)), *arguments],
            check=False,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            env=self.environment,
            cwd=directory or self.directory,
            **(account or self.account).popen,
        )
        return done

    def log(self, name: str) -> str:
        """Return one of its log files, such as `StartLog`; empty where there is none yet."""
        path = self.directory / "log" / name
        return path.read_text(errors="replace") if path.exists() else ""


def free_port(address: str = "127.0.0.1") -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _own(path: Path, account: Account, mode: int) -> None:
    path.mkdir(exist_ok=True)
    path.chmod(mode)
    os.chown(path, account.uid, account.gid)
