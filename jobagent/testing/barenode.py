"""Worker nodes as sites give them: a minimal Debian with wget, an address of its own, and an unprivileged user.

`Lan` is a bridge of this machine with a private network; `BareNode` a root file system (an overlay over a cached
minimal Debian), a network namespace on the bridge and, for each command, mount and PID namespaces.  Needs root,
mmdebstrap and iproute2.  What a command leaves on the node's disk stays visible in `written()`.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from jobagent.errors import ConfigurationError
from jobagent.testing import accounts

SUITES = ("bullseye", "bookworm", "trixie")  # glibc 2.31, 2.36, 2.41
TOOL_TIMEOUT_S = 30.0
MAKE_TIMEOUT_S = 300.0
_PROGRAMS = ("mmdebstrap", "ip", "unshare", "mount")

# $1 lower $2 upper $3 work $4 root $5 uid:gid $6 number of paths, the paths, then the command.
# The shell stays as process 1: it reaps.
_ENTER = """
mount -t overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" overlay "$4" &&
mount -t proc proc "$4/proc" &&
mount -t tmpfs -o mode=0755 tmpfs "$4/dev" &&
mkdir -m 1777 "$4/dev/shm" && ln -s /proc/self/fd "$4/dev/fd" || exit 125
for device in null zero full random urandom; do
    : >"$4/dev/$device" && mount --bind "/dev/$device" "$4/dev/$device" || exit 125
done
root=$4 user=$5 paths=$6
shift 6
while [ "$paths" -gt 0 ]; do
    mkdir -p "$root$1" && mount --bind "$1" "$root$1" || exit 125
    paths=$((paths - 1))
    shift
done
chroot --userspec="$user" --groups= "$root" "$@"
"""


def is_possible() -> str:
    """Return why bare nodes cannot be made here, or an empty string."""
    if os.geteuid() != 0:
        return "bare nodes need root"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def minimal_debian(suite: str) -> Path:
    """Return the cached minimal system of that Debian release, making it first where there is none (about 15 s).

    Raises:
        ConfigurationError: It cannot be made.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jobagent" / "debian"
    cache.mkdir(parents=True, exist_ok=True)
    system = cache / suite
    with open(cache / f"{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not system.exists():
            with tempfile.TemporaryDirectory(prefix=".making-", dir=cache) as work:
                made = Path(work) / "root"
                mirror = [os.environ["JOBAGENT_DEBIAN_MIRROR"]] if "JOBAGENT_DEBIAN_MIRROR" in os.environ else []
                options = ("--quiet", "--variant=minbase", "--include=wget,ca-certificates")
                _run(["mmdebstrap", *options, suite, str(made), *mirror], timeout_s=MAKE_TIMEOUT_S)
                made.rename(system)
    return system


class Lan:
    """A private network on a bridge; `address` is this machine's own in it.  A context manager."""

    def __init__(self) -> None:
        self.name = f"ja{secrets.token_hex(3)}"
        self._hosts = 1
        self.prefix = ""

    @property
    def address(self) -> str:
        """Where this machine is reached by the nodes."""
        return f"{self.prefix}.1"

    @property
    def network(self) -> str:
        """The network of all nodes."""
        return f"{self.prefix}.0/24"

    def __enter__(self) -> Lan:
        _run(["ip", "link", "add", self.name, "type", "bridge"])
        self.prefix = f"10.{100 + secrets.randbelow(100)}.{secrets.randbelow(250)}"
        _run(["ip", "address", "add", f"{self.address}/24", "dev", self.name])
        _run(["ip", "link", "set", self.name, "up"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _run(["ip", "link", "delete", self.name])

    def sent_bytes(self) -> int:
        """Bytes that this machine has sent to the nodes, all layers included."""
        return int(Path(f"/sys/class/net/{self.name}/statistics/tx_bytes").read_text())

    def next_address(self) -> str:
        """Return an address that nobody has yet."""
        self._hosts += 1
        return f"{self.prefix}.{self._hosts}"


class BareNode:
    """A worker node.  A context manager; the files that were written on it go with it."""

    def __init__(self, lan: Lan, suite: str = "bookworm", *, link_mbit: int = 0) -> None:
        self.lan = lan
        self.link_mbit = link_mbit  # rate of its network link, each way; 0: what the machine can do
        self.suite = suite
        self.address = lan.next_address()
        self.namespace = f"{lan.name}n{self.address.rpartition('.')[2]}"
        self.account = accounts.of_user()
        self._running: list[subprocess.Popen[str]] = []
        self._mounts: list[Path] = []

    def __enter__(self) -> BareNode:
        self._lower = minimal_debian(self.suite)
        self.disk = Path(tempfile.mkdtemp(prefix="jobagent-node-"))
        for name in ("upper", "work", "root"):
            (self.disk / name).mkdir(mode=0o755)
        self.disk.chmod(0o755)
        outside, inside = f"{self.namespace}h", f"{self.namespace}i"
        _run(["ip", "netns", "add", self.namespace])
        _run(["ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", self.namespace])
        _run(["ip", "link", "set", outside, "master", self.lan.name, "up"])
        for words in (
            ["address", "add", f"{self.address}/24", "dev", inside],
            ["link", "set", inside, "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", self.lan.address],
        ):
            _run(["ip", "-netns", self.namespace, *words])
        if self.link_mbit:
            shape = ["root", "tbf", "rate", f"{self.link_mbit}mbit", "burst", "256kb", "latency", "50ms"]
            _run(["tc", "qdisc", "add", "dev", outside, *shape])
            _run(["tc", "-netns", self.namespace, "qdisc", "add", "dev", inside, *shape])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        _run(["ip", "netns", "delete", self.namespace])
        shutil.rmtree(self.disk, ignore_errors=True)

    def received_bytes(self) -> int:
        """Bytes that came over the node's link, all layers included."""
        return int(Path(f"/sys/class/net/{self.namespace}h/statistics/tx_bytes").read_text())

    def pids(self) -> list[int]:
        """Return what runs on the node, as this machine numbers it."""
        return [int(pid) for pid in _run(["ip", "netns", "pids", self.namespace]).split()]

    def stop(self) -> None:
        """End everything that runs on the node; its disk stays."""
        for running in self._running:
            if running.poll() is None:
                running.kill()  # unshare --kill-child takes the whole PID namespace with it
                running.communicate(timeout=TOOL_TIMEOUT_S)
        self._running.clear()

    def put(self, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """Write a file onto the node's disk, owned by its user.  Not while something runs there."""
        target = self.disk / "upper" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)
        os.chown(target, self.account.uid, self.account.gid)

    def directory(self, path: str) -> None:
        """Make a directory for the node's user."""
        target = self.disk / "upper" / path.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        os.chown(target, self.account.uid, self.account.gid)

    def mount(self, path: Path) -> None:
        """Show a directory of this machine on the node, under the same path, from the next command on."""
        self._mounts.append(path.resolve())

    def written(self) -> list[str]:
        """Return the paths of all files that were written on the node."""
        upper = self.disk / "upper"
        return sorted(f"/{path.relative_to(upper)}" for path in entries_below(upper) if not path.is_dir())

    def start(
        self, *argv: str, environment: Mapping[str, str] | None = None, is_root: bool = False
    ) -> subprocess.Popen[str]:
        """Start a program on the node as its user; output is piped.  Killing it takes all its descendants with it."""
        user = "0:0" if is_root else f"{self.account.uid}:{self.account.gid}"
        disk = [str(self.disk / name) for name in ("upper", "work", "root")]
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER, "sh", str(self._lower)]
        enter += [*disk, user, str(len(self._mounts)), *map(str, self._mounts)]
        variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", **(environment or {})}
        clean = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        started = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *enter, *clean, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        self._running.append(started)
        return started

    def run(
        self,
        *argv: str,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 120.0,
        is_root: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the node to its end."""
        started = self.start(*argv, environment=environment, is_root=is_root)
        try:
            out, err = started.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            started.kill()
            out, err = started.communicate(timeout=TOOL_TIMEOUT_S)
            raise AssertionError(
                f"still running after {timeout_s:g} s: {argv}\n{out[-4000:]}\n{err[-8000:]}"
            ) from None
        return subprocess.CompletedProcess(started.args, started.returncode, out, err)


def _run(argv: Sequence[str], *, timeout_s: float = TOOL_TIMEOUT_S) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise ConfigurationError(f"{' '.join(argv[:6])} failed: {done.stderr[-500:]}")
    return done.stdout


def entries_below(top: Path) -> list[Path]:
    """Return all that lies below a directory, also while programs remove some of it."""
    return [Path(where, name) for where, folders, files in os.walk(top) for name in (*folders, *files)]
