"""A whole small grid on loopback for tests, demos and benchmarks: catalogue, keys, central services, worker nodes.

All parts are the real ones, started as their commands; packages are small trees made on the spot.  Everything lives
below one directory and ends with the context.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSPHRASE = "world"  # these keys protect nothing but the test
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0


def command(*words: str | Path) -> list[str]:
    """Return the argv of a `jobagent` command in this interpreter's environment."""
    return [sys.executable, "-m", "jobagent", *map(str, words)]


@dataclass(slots=True)
class Node:
    """One worker node: a configuration file, a scratch directory and an address of its own in 127/8."""

    configuration: Path
    scratch: Path
    address: str

    def call(self, *words: str | Path, timeout_s: float = 120.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on this node and return what it printed."""
        return subprocess.run(
            command("--config", self.configuration, *words),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=node_environment(self.scratch),
            **options,
        )

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command on this node; the caller ends it."""
        argv = command("--config", self.configuration, *words)
        return subprocess.Popen(argv, text=True, env=node_environment(self.scratch), **options)

    def leftovers(self) -> list[Path]:
        """What is in the scratch directory."""
        return sorted(self.scratch.iterdir())


def node_environment(home: Path) -> dict[str, str]:
    """The bare environment of a worker node; a node service of the machine that we test on is none of its."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(home), "JOBAGENT_SOCKET": str(home.parent / "node.sock")}


class World:
    """Central services and any number of nodes below `directory`."""

    def __init__(self, directory: Path, *, vos: Sequence[str] = ("alice",), passphrase: str = PASSPHRASE) -> None:
        """Make catalogue and keys, where they are not there yet; nothing runs yet."""
        self.passphrase = passphrase
        self.directory = directory
        self.catalogue = directory / "catalogue"
        self.keys = directory / "keys"
        self.url = ""
        self._nodes = 0
        self._server: subprocess.Popen[bytes] | None = None
        if self.root.exists():
            return
        self.call("catalogue", "init", self.catalogue, "--keys", self.keys)
        for vo in vos:
            self.call("vo", "add", vo, "--catalogue", self.catalogue, "--keys", self.keys)

    @property
    def root(self) -> Path:
        """The first root metadata, which every client is given."""
        return self.catalogue / "metadata" / "1.root.json"

    def call(self, *words: str | Path) -> str:
        """Run a central command; raises with its output where it fails."""
        done = subprocess.run(
            command(*words),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=os.environ | {"JOBAGENT_PASSPHRASE": self.passphrase},
        )
        if done.returncode:
            raise RuntimeError(f"jobagent {' '.join(map(str, words))} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def publish(
        self, name: str, files: Mapping[str, str | bytes], *options: str, version: str = "1", vo: str = "alice"
    ) -> str:
        """Publish a package of `files` (path → content; `bin/…` is made executable); return its full name."""
        tree = self.directory / "trees" / f"{vo}-{name}-{version}"
        for path, content in files.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
            target.chmod(0o755 if path.startswith("bin/") else 0o644)
        store = ("--vo", vo, "--catalogue", self.catalogue, "--keys", self.keys)
        self.call("publish", *store, "--tree", tree, "--name", name, "--version", version, *options)
        return f"VO_{vo.upper()}@{name}::{version}"

    @contextlib.contextmanager
    def serving(self, *options: str) -> Iterator[str]:
        """Run the central services; yield their URL."""
        self.start_services(*options)
        try:
            yield self.url
        finally:
            self.stop_services()

    def start_services(self, *options: str, port: int = 0, settings: Path | None = None) -> str:
        """Start `jobagent serve`, with a configuration file if given, and return its URL once it answers."""
        port_file = self.directory / "port"
        port_file.unlink(missing_ok=True)
        words = ("--host", "127.0.0.1", "--port", str(port), "--port-file", port_file, "--keys", self.keys)
        with (self.directory / "serve.log").open("ab") as log:
            self._server = subprocess.Popen(
                command(*(("--config", settings) if settings else ()), "serve", self.catalogue, *words, *options),
                stdout=log,
                stderr=log,
                env=os.environ | {"JOBAGENT_PASSPHRASE": self.passphrase},
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not port_file.exists():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.stop_services()
                raise RuntimeError(f"no services: {(self.directory / 'serve.log').read_text()[-2000:]}")
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{port_file.read_text().strip()}"
        return self.url

    def stop_services(self, *, kill: bool = False) -> None:
        """End the services; with `kill` as a crash would."""
        if self._server is None:
            return
        (self._server.kill if kill else self._server.terminate)()
        try:
            self._server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._server = None

    def node(
        self, extra: str = "", *, catalogue: str | None = None, sections: Mapping[str, str] | None = None
    ) -> Node:
        """Make the next worker node; `sections` adds lines to a section, `extra` whole sections of TOML."""
        self._nodes += 1
        address = f"127.0.{self._nodes // 200 + 1}.{self._nodes % 200 + 1}"
        home = self.directory / "nodes" / str(self._nodes)
        scratch = home / "scratch"
        scratch.mkdir(parents=True)
        lines = {
            "site": f'name = "test"\nscratch = "{scratch}"\naddress = "{address}"\n',
            "catalogue": f'urls = ["{catalogue or self.url}"]\nroot = "{self.root}"\n',
            "job": 'vo = "alice"\nkill_grace_s = 1\n',
        }
        for section, text in (sections or {}).items():
            lines[section] = lines.get(section, "") + text
        configuration = home / "jobagent.toml"
        configuration.write_text("".join(f"[{s}]\n{t}" for s, t in lines.items()) + extra)
        return Node(configuration, scratch, address)

    def status(self) -> dict[str, Any]:
        """What the services say of themselves."""
        with urllib.request.urlopen(f"{self.url}/status.json", timeout=10) as answer:
            return dict(json.load(answer))
