"""`bench.catalogue`: what a signed catalogue costs an agent, by the number of packages of the VO it looks into.

For 20 and 2,000 packages, with `--full` also 20,000, a refresh and one look-up, each in a process of its own:

- `cold_ms`, `cold_bytes`: nothing is kept; `cold_work_ms` is the same without the time of imports.
- `confirm_ms`, `confirm_bytes`: all is kept, a mirror is asked whether it is current.
- `follow_ms`, `follow_bytes`: one package was published since.
- `warm_ms`: all is kept and was confirmed within the refresh interval: no request.
- `publish_ms`: for the VO's manager, to sign one more package; `largest_role_bytes` is what was downloaded at most.

The server is on loopback: milliseconds are work, not distance; requests are counted for those who have distance.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench import leave_nothing_when_terminated
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Repository
from jobagent.model import (
    Archive,
    Blob,
    EnvironmentAction,
    EnvironmentChange,
    Package,
    PackageId,
    PackageState,
    Tree,
)

SIZES = (20, 2000)
FULL_SIZES = (*SIZES, 20000)
NAMESPACE = "alice"

# What one agent does; prints milliseconds.  `work` imports first, `look` finds out what imports cost.
AGENT = """
import sys, time
from pathlib import Path
from jobagent.events import Events
from jobagent_catalogue.client import SignedCatalogue
from jobagent_catalogue.settings import CatalogueSettings
url, root, state, name, mode = sys.argv[1:]
if mode == "work":
    import urllib3
    from jobagent_catalogue import loading
settings = CatalogueSettings(urls=(url,), root=Path(root), refresh_interval_s=3600.0)
start = time.perf_counter()
catalogue = SignedCatalogue(settings, Path(state), Events())
catalogue.refresh(is_forced=mode == "confirm")
(package,) = catalogue.versions("alice", name)
print((time.perf_counter() - start) * 1e3)
"""


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.catalogue", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--full", action="store_true", help="also 20,000 packages, more repeats")
    options = parser.parse_args()
    leave_nothing_when_terminated()
    sizes = FULL_SIZES if options.full else SIZES
    by_size = {str(size): measure(size, repeats=9 if options.full else 5) for size in sizes}
    figures = {f"{name}_{size}": value for size, found in by_size.items() for name, value in found.items()}
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0


def measure(size: int, *, repeats: int) -> dict[str, Any]:
    """Return the figures for a VO of `size` packages."""
    with tempfile.TemporaryDirectory(prefix="jobagent-bench-") as directory:
        base = Path(directory)
        keys = KeyStore(base / "keys", passphrase=lambda name: None)
        repository, _ = Repository.create(base / "catalogue", keys)
        repository.add_vo(NAMESPACE, [keys.new("alice-1").key])
        repository.register([package(number) for number in range(size)])
        (base / "root.json").write_bytes(repository.root_bytes())
        with Server(base / "catalogue") as server:
            agent = Agent(base, server, name_of(size // 2))
            cold = [agent.run(f"cold{n}", "look") for n in range(repeats)]
            work = [agent.run(f"work{n}", "work") for n in range(repeats)]
            confirm = [agent.run("cold0", "confirm") for _ in range(repeats)]
            warm = [agent.run("cold0", "look") for _ in range(repeats)]
            publish_ms, follow = [], []
            for number in range(repeats):
                start = time.perf_counter()
                repository.register([package(size + number)])
                publish_ms.append((time.perf_counter() - start) * 1e3)
                follow.append(agent.run("cold0", "confirm"))
        assert all(run.requests == 0 for run in warm), "a warm agent asked a mirror"
        return {
            "cold_ms": median_ms(cold),
            "cold_work_ms": median_ms(work),
            "cold_bytes": cold[0].size_bytes,
            "cold_requests": cold[0].requests,
            "confirm_ms": median_ms(confirm),
            "confirm_bytes": confirm[0].size_bytes,
            "confirm_requests": confirm[0].requests,
            "follow_ms": median_ms(follow),
            "follow_bytes": round(statistics.median(run.size_bytes for run in follow)),
            "warm_ms": median_ms(warm),
            "publish_ms": round(statistics.median(publish_ms), 1),
            "largest_role_bytes": max(run.largest_bytes for run in cold),
        }


class Run:
    """One agent's run: its own milliseconds, and what the server sent meanwhile."""

    def __init__(self, spent_ms: float, answers: list[int]) -> None:
        self.spent_ms = spent_ms
        self.size_bytes = sum(answers)
        self.requests = len(answers)
        self.largest_bytes = max(answers, default=0)


class Agent:
    """Runs agents in processes of their own."""

    def __init__(self, base: Path, server: Server, name: str) -> None:
        self._base = base
        self._server = server
        self._name = name

    def run(self, state: str, mode: str) -> Run:
        """Let one agent look the package up."""
        self._server.answers.clear()
        words = [self._server.url, str(self._base / "root.json"), str(self._base / state), self._name, mode]
        done = subprocess.run(
            [sys.executable, "-c", AGENT, *words], capture_output=True, text=True, timeout=120, check=True
        )
        return Run(float(done.stdout), list(self._server.answers))


class Server:
    """Serves a directory on loopback and notes the bytes of every answer."""

    def __init__(self, directory: Path) -> None:
        self.answers: list[int] = []
        handler = functools.partial(_Handler, self, directory)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, owner: Server, directory: Path, *args: Any) -> None:
        self._owner = owner
        self._directory = directory
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer with the file in one packet with its head, as a real server does."""
        file = self._directory / self.path.lstrip("/")
        data = file.read_bytes() if file.is_file() else b""
        self._owner.answers.append(len(data))
        status = b"200 OK" if file.is_file() else b"404 Not Found"
        self.wfile.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(data), data))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def name_of(number: int) -> str:
    """Return a package name of usual length."""
    return f"Package-{number:05}"


def package(number: int) -> Package:
    """Return an entry as large as a real one: four dependencies, three changes to the environment."""
    digest = f"{number:064x}"
    name = name_of(number)
    return Package(
        id=PackageId(NAMESPACE, name, "v1-02-10"),
        platform="Linux-x86_64",
        archive=Archive(f"{name}-v1-02-10.tar.zst", "tar.zst", digest, 10_000_000, digest[:40], digest),
        tree=Tree(Blob(digest, 50_000), 40_000_000, 900),
        published_s=1_700_000_000 + number,
        dependencies=tuple(
            PackageId(NAMESPACE, name_of(max(0, number - n)), "v1") for n in range(1, min(number, 4) + 1)
        ),
        environment=tuple(
            EnvironmentChange(EnvironmentAction.PREPEND, variable, f"{{root}}/{place}")
            for variable, place in (("PATH", "bin"), ("LD_LIBRARY_PATH", "lib"), ("PYTHONPATH", "lib/python"))
        ),
        state=PackageState.RELEASED,
        description=f"The {number}th package of a large experiment",
        licence="LGPL-2.1-or-later",
        provenance=Blob(digest, 20_000),
    )


def median_ms(runs: list[Run]) -> float:
    """Return the median of the agents' own times."""
    return round(statistics.median(run.spent_ms for run in runs), 1)


if __name__ == "__main__":
    sys.exit(main())
