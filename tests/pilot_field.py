"""A worker node, a web server and a small runtime for the tests of the pilot script."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jobagent.central.landing.pilotscript import Landing, Runtime, render
from jobagent.testing import accounts

SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"]}
TIMEOUT_S = 40.0
# what the script says it needs, plus what the little payloads use
TOOLS = [
    *("cat", "chmod", "cut", "date", "dd", "df", "env", "find", "flock", "getconf", "grep", "gzip", "id", "mkdir"),
    *("mv", "readlink", "rm", "sed", "setsid", "sh", "sha256sum", "sleep", "sort", "tar", "tr", "uname", "wc"),
]


def make_runtime(jobagent: str, *, padding: bytes = b"") -> tuple[bytes, Runtime]:
    """Return a runtime archive whose `jobagent` command is this shell text, and what a pilot script says of it."""
    tree = {
        "bin/jobagent": f"#!/bin/sh\n{jobagent}\n".encode(),
        "bin/python": b"#!/bin/sh\nexit 0\n",
        "lib/padding": padding,
    }
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(tree.items())).encode()
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in {**tree, "SHA256SUMS": sums, "unpack": b'rm -f "$1/unpack"\n'}.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    archive = buffer.getvalue()
    digest, sums_digest = hashlib.sha256(archive).hexdigest(), hashlib.sha256(sums).hexdigest()
    size = sum(map(len, tree.values()))
    return archive, Runtime(digest, len(archive), platform.machine(), len(tree), sums_digest, size)


Answer = Callable[[BaseHTTPRequestHandler], None]


def send(
    body: bytes,
    *,
    status: int = 200,
    length: int | None = None,
    date_s: float | None = None,
    age_s: int | None = None,
) -> Answer:
    """Answer with `body`, announcing `length` bytes, dated `date_s` (seconds since the epoch)."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response_only(status)
        request.send_header("Date", formatdate(date_s, usegmt=True))
        request.send_header("Content-Length", str(len(body) if length is None else length))
        if age_s is not None:
            request.send_header("Age", str(age_s))
        request.end_headers()
        request.wfile.write(body)

    return answer


def drop(request: BaseHTTPRequestHandler) -> None:
    """Close the connection without a word."""
    request.close_connection = True


class Web:
    """A web server (and HTTP proxy: it answers by path, whoever the host is) on a free port."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                path = "/" + self.path.split("/", 3)[3] if self.path.startswith("http://") else self.path
                self.close_connection = True
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    web.answers.get(path, send(b"no such file", status=404))(self)

            def log_message(self, *_: Any) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://{address}:{self._server.server_port}"

    def close(self) -> None:
        """Stop."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class Node:
    """A worker node: an unprivileged user with an empty scratch directory."""

    def __init__(self, shell: str) -> None:
        self.shell = SHELLS[shell]
        self.account = accounts.of_user()
        self.mark = uuid.uuid4().hex
        self.base = Path(tempfile.mkdtemp(prefix="pilot-test-"))
        self.base.chmod(0o755)
        self.scratch = self._owned("scratch")
        self.home = self._owned("home")
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "JOBAGENT_SCRATCH": str(self.scratch),
            "JOBAGENT_TEST": self.mark,
            "JOBAGENT_GRACE_S": "3",
        }

    def _owned(self, name: str) -> Path:
        path = self.base / name
        path.mkdir()
        os.chown(path, self.account.uid, self.account.gid)
        return path

    def only_tools(self, *more: str) -> None:
        """Leave nothing in PATH but what the script says it needs, and `more`: `name` or `name=target`."""
        directory = self.base / "tools"
        directory.mkdir()
        for item in (*TOOLS, *more):
            name, _, target = item.partition("=")
            found = shutil.which(target or name)
            assert found, f"{item} is not installed"
            (directory / name).symlink_to(found)
        self.environment["PATH"] = str(directory)

    def script(self, runtime: Runtime, *urls: str, settings: str = "", change: tuple[str, str] = ("", "")) -> Path:
        """Write a pilot script with little needs."""
        landing = Landing(runtime, urls, settings, b"{}", scratch_mb=0, memory_mb=16)
        path = self.base / "pilot.sh"
        path.write_text(render(landing).replace(*change) if change[0] else render(landing))
        path.chmod(0o755)
        return path

    def pipe(self, text: str) -> subprocess.CompletedProcess[str]:
        """Give `text` to the shell's standard input."""
        return subprocess.run(
            self.shell,
            input=text,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            **self.account.popen,  # type: ignore[call-overload]
        )

    def start(
        self, script: Path, *arguments: str, mount: str = "", environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start the script as a batch job does; `mount` are options of a tmpfs that takes the place of scratch."""
        argv: Sequence[str] = [*self.shell, str(script), *arguments]
        as_user: dict[str, Any] = self.account.popen
        if mount:
            options = f"{mount},uid={self.account.uid},gid={self.account.gid},mode=0755"
            then = ["setpriv", f"--reuid={self.account.uid}", f"--regid={self.account.gid}", "--clear-groups", *argv]
            put = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
            argv, as_user = ["unshare", "--mount", "sh", "-c", put, "sh", options, str(self.scratch), *then], {}
        return subprocess.Popen(
            argv,
            env={**self.environment, **(environment or {})},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **as_user,
        )

    def run(
        self, script: Path, *arguments: str, mount: str = "", environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the script to its end."""
        started = self.start(script, *arguments, mount=mount, environment=environment)
        out, err = started.communicate(timeout=TIMEOUT_S)
        return subprocess.CompletedProcess(started.args, started.returncode, out, err)

    def processes(self) -> list[str]:
        """Command lines of everything that was started here and still lives."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"JOBAGENT_TEST={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
            except OSError:
                continue
        return found

    def leftovers(self) -> list[str]:
        """Files in scratch, and processes."""
        return [path.name for path in self.scratch.iterdir()] + self.processes()

    def remove(self) -> None:
        """Remove the node's files and end what still runs on it."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"JOBAGENT_TEST={self.mark}".encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), 9)
            except OSError:
                continue
        shutil.rmtree(self.base, ignore_errors=True)
