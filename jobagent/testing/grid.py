"""A VO with pilots, all parts real: catalogue and services, the VO's pool, and the bundle, on a private network.

Worker nodes are `BareNode`s on the same network; `jobagent.testing.element` is a compute element in front of some.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from jobagent.condor.pilots.glidein import build_of
from jobagent.testing import condor_tree, interpreter
from jobagent.testing.barenode import BareNode, Lan
from jobagent.testing.condor_tree import CondorTree
from jobagent.testing.pool import Pool
from jobagent.testing.world import PASSPHRASE, World

VO = "alice"
POOL_NAME = "vo.test"
GLIDEIN_IDENTITY = f"glidein@{POOL_NAME}"
PILOT_TOKEN = ("ADVERTISE_STARTD", "ADVERTISE_MASTER", "READ")
TOKEN_FILE = "pool.token"
_VO_CONFIG = f"""
ALLOW_ADVERTISE_STARTD = {GLIDEIN_IDENTITY}
ALLOW_ADVERTISE_MASTER = {GLIDEIN_IDENTITY} condor@* root@* $(POOL_USER)@*
"""
# The VO's schedd as a client of compute elements, quick.
CLIENT = """
GRIDMAP =
CONDOR_JOB_POLL_INTERVAL = 3
GRIDMANAGER_JOB_PROBE_INTERVAL = 3
GRIDMANAGER_JOB_PROBE_RATE = 20
GRIDMANAGER_SELECTION_EXPR = Owner
C_GAHP_CONTACT_SCHEDD_DELAY = 1
"""
# What a production pool does in minutes, in seconds.
QUICK = """UPDATE_INTERVAL = 5
MASTER_UPDATE_INTERVAL = 5
POLLING_INTERVAL = 2
JOBAGENT_PERIOD = 2s
"""


class User:
    """The pool's user with a home, HTCondor's client configuration and the agent's settings; not root."""

    def __init__(self, grid: Grid) -> None:
        self._account = grid.pool.user
        self._python = interpreter.readable(grid.directory / "python")
        self.home = grid.directory / "user"
        self.home.mkdir()
        self.config = grid.pool.client_config(self.home / "condor")
        root = Path(shutil.copy(grid.world.root, self.home / "root.json"))
        self.write(
            "jobagent.toml", f'[catalogue]\nurls = ["{grid.world.url}"]\nroot = "{root}"\n[job]\nvo = "{VO}"\n'
        )
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, self._account.uid, self._account.gid)

    def write(self, name: str, content: str) -> Path:
        """Put a file into the user's home."""
        path = self.home / name
        path.write_text(content)
        os.chown(path, self._account.uid, self._account.gid)
        return path

    def call(self, *words: str | Path, timeout_s: float = 120.0) -> str:
        """Run a command of the agent as the user; raises with its output where it fails."""
        started = self.start(*words)
        try:
            out, err = started.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            started.kill()
            started.communicate()
            raise
        if started.returncode:
            raise RuntimeError(f"jobagent {' '.join(map(str, words))} ended with {started.returncode}: {err}")
        return out

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command of the agent as the user; the caller ends it."""
        argv = [self._python.program, "-I", "-m", "jobagent", "--config", self.home / "jobagent.toml", *words]
        return subprocess.Popen(
            list(map(str, argv)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.home), "CONDOR_CONFIG": str(self.config)},
            **self._account.popen,
        )


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes that the central host has sent: by its web server, by its seeder, and over its wire in all."""

    web: int
    seeder: int
    wire: int

    def since(self, before: Sent) -> Sent:
        """Return what was sent in between."""
        return Sent(self.web - before.web, self.seeder - before.seeder, self.wire - before.wire)


class Grid:
    """Everything central.  A context manager.

    `suite` is that of HTCondor, of the pool and of the glide-ins; `effort` that of the bundle's xz; `store` a
    directory with catalogue and keys from an earlier time, which `passphrase` opens.
    """

    def __init__(
        self,
        *,
        suite: str = "sid",
        effort: int = 0,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        store: Path | None = None,
        passphrase: str = PASSPHRASE,
    ) -> None:
        self._suite = suite
        self._effort = effort
        self._settings = {**(settings or {})}
        self._store = store
        self._passphrase = passphrase
        self._stack = contextlib.ExitStack()
        self.bundle_bytes = 0

    def __enter__(self) -> Grid:
        with contextlib.ExitStack() as stack:
            directory = Path(tempfile.mkdtemp(prefix="jobagent-grid-", dir="/tmp"))
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            directory.chmod(0o755)
            self.directory = directory
            self.lan = stack.enter_context(Lan())
            self.condor: CondorTree = condor_tree.install(directory / "condor", self._suite)
            self.pool = stack.enter_context(
                Pool(
                    self.condor,
                    name=POOL_NAME,
                    execution_points=0,
                    central_config=_VO_CONFIG + CLIENT,
                    host=self.lan.address,
                )
            )
            self.world = World(self._store or directory / "world", vos=(VO,), passphrase=self._passphrase)
            central = directory / "central.toml"
            central.write_text(f'[central]\nsites = ["site-a={self.lan.network}"]\n')  # all nodes are of one site
            self.world.start_services("--host", self.lan.address, settings=central)
            stack.callback(self.world.stop_services)
            self.world.url = self.world.url.replace("127.0.0.1", self.lan.address)
            self._publish()
            self._bundle()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def script_url(self) -> str:
        """Where pilots start."""
        return f"{self.world.url}/pilot.sh"

    def sent(self) -> Sent:
        """Ask the services, and the kernel: HTCondor's words and all headers are in its count only."""
        server = self.world.status()["server"]
        return Sent(int(server["http_bytes"]), int(server["seeder"]["upload_bytes"]), self.lan.sent_bytes())

    def token(self, lifetime_s: int = 3600) -> str:
        """Return a token for one pilot."""
        return self.pool.token(GLIDEIN_IDENTITY, *PILOT_TOKEN, lifetime_s=lifetime_s)

    def equip(self, node: BareNode, token: str | None = None) -> dict[str, str]:
        """Put a token onto a bare node; return the pilot's environment there."""
        node.directory("/home/pilot")
        node.put(f"/home/pilot/{TOKEN_FILE}", token or self.token(), mode=0o600)
        return {"HOME": "/home/pilot", "JOBAGENT_TOKEN_FILE": f"/home/pilot/{TOKEN_FILE}"}

    def land(self) -> tuple[str, ...]:
        """The command that a user types on a worker node."""
        return ("sh", "-c", f"wget -qO- {self.script_url} | sh")

    def user(self) -> User:
        """Return somebody who submits jobs and pilots."""
        return User(self)

    # inside

    def _publish(self) -> None:
        worker = condor_tree.install(self.directory / "worker", self._suite, "worker")
        self.publish("HTCondorWorker", worker.version, worker.path)

    def publish(self, name: str, version: str, tree: Path, *options: str) -> None:
        """Publish a tree as a package of the VO."""
        store = ("--vo", VO, "--catalogue", self.world.catalogue, "--keys", self.world.keys)
        words = ("--tree", tree, "--name", name, "--version", version, "--level", "3", "--skip-existing")
        self.world.call("publish", *store, *words, *options)

    def _bundle(self) -> None:
        settings = {**self._settings, "glidein": {"condor_config": QUICK} | dict(self._settings.get("glidein", {}))}
        extra = self.directory / "settings.toml"
        extra.write_text(
            "".join(
                f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
                for section, values in settings.items()
            )
        )
        output = self.directory / "bundle"
        script: list[str | Path] = ["--url", self.world.url, "--root", self.world.root, "--vo", VO]
        script += ["--pool", self.pool.address, "--agent", "JobAgent", "--settings", extra]
        script += ["--catalogue", self.world.catalogue, "--scratch-mb", "200"]
        made = self.world.call("bundle", output, "--effort", str(self._effort), "--json", *script)
        self.bundle_bytes = int(json.loads(made)["size_bytes"])
        build = build_of(output / "agent" / "site")[:12]
        self.publish("JobAgent", f"{int(time.time())}-{build}", output / "agent")  # the newest in a kept store too
