"""A relocatable HTCondor made of Debian packages, without touching the host's own packages.

Packages come through `apt-get download` with lists and cache of its own, from the mirror that the machine already
uses.  Each program gets the tree's own loader and libraries, so that an HTCondor built for a newer Debian runs here.
A tree is made once per suite and kind under the user's cache directory; `install` copies it to where it is used.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobagent.condor.pilots import relocation
from jobagent.errors import ConfigurationError, SupplyError

SUITES = ("sid", "trixie")  # HTCondor 25.x of Debian unstable, 23.x of Debian stable
KINDS = ("full", "worker")
FORMAT = 3  # of the tree; a change makes new trees
APT_TIMEOUT_S = 300.0

_PACKAGES = (
    "condor", "libc6", "libstdc++6", "libgcc-s1", "libgomp1", "libssl3t64", "libsqlite3-0", "libuuid1",
    "libpcre2-8-0", "libexpat1", "zlib1g", "libzstd1",
)  # fmt: skip
_DLOPENED = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2", "libgcc_s.so.1")  # named by no program
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_WORKER = {
    "sbin": "condor_master condor_startd condor_starter condor_procd procd_ctl",
    "libexec": "condor_shared_port condor_chirp condor_gpu_discovery data_plugin",
    "bin": "condor_config_val condor_who condor_ping condor_version",
}
_FULL = {
    "sbin": "condor_collector condor_negotiator condor_schedd condor_shadow condor_gridmanager condor_c-gahp "
    "condor_c-gahp_worker_thread condor_credd condor_preen condor_transferd",
    "libexec": "condor_job_router condor_limits_wrapper.sh condor_defrag",
    "bin": "condor_q condor_status condor_submit condor_rm condor_hold condor_release condor_history condor_qedit "
    "condor_userprio condor_token_create condor_token_list condor_token_fetch condor_router_q condor_job_router_info "
    "condor_prio condor_transfer_data condor_tail condor_ssh_to_job condor_update_machine_ad condor_drain condor_now "
    "condor_store_cred condor_evicted_files condor_transform_ads condor_off condor_on condor_reconfig condor_vacate "
    "condor_vacate_job condor_wait",
}
_SOURCES = {
    "sbin": ("usr/sbin",),
    "libexec": ("usr/libexec/condor", "usr/lib/condor/libexec"),
    "bin": ("usr/bin", "usr/sbin"),
}


@dataclass(frozen=True, slots=True)
class CondorTree:
    """An installed tree, relocated to where it is."""

    path: Path
    version: str  # of HTCondor, as in "25.14.1"

    @property
    def search_path(self) -> str:
        """Directories of its programs, as in PATH."""
        return f"{self.path / 'bin'}:{self.path / 'sbin'}"

    def program(self, name: str) -> Path:
        """Return the path of a program of the tree; raises ConfigurationError where it has none of that name."""
        for directory in relocation.PROGRAM_DIRECTORIES:
            if (path := self.path / directory / name).exists():
                return path
        raise ConfigurationError(f"the HTCondor tree {self.path} has no {name}")


def cache_directory() -> Path:
    """Return where trees are kept: `$XDG_CACHE_HOME/jobagent/condor`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jobagent" / "condor"


def cached(suite: str = "sid", kind: str = "full") -> CondorTree:
    """Return the cached tree, making it first where there is none (about 6 s and 12 MB of downloads).

    Safe between processes: one makes it, the others wait.

    Raises:
        SupplyError: The packages cannot be had.
        ConfigurationError: A tool is missing on this machine.
    """
    if suite not in SUITES or kind not in KINDS:
        raise ConfigurationError(f"no HTCondor tree {suite}/{kind}: suites {SUITES}, kinds {KINDS}")
    root = cache_directory()
    root.mkdir(parents=True, exist_ok=True)
    tree = root / f"{suite}-{kind}-{FORMAT}"
    with _locked(root / f"{tree.name}.lock"):
        if not tree.exists():
            with tempfile.TemporaryDirectory(prefix=".making-", dir=root) as work:
                made = _make(Path(work), suite, kind)
                relocation.relocate(made, home=tree)
                made.rename(tree)
    return opened(tree)


def install(destination: Path, suite: str = "sid", kind: str = "full") -> CondorTree:
    """Copy the cached tree to `destination` (which must not exist), readable by everybody, and relocate it."""
    source = cached(suite, kind)
    shutil.copytree(source.path, destination, symlinks=True)
    relocation.relocate(destination)
    return opened(destination)


def opened(path: Path) -> CondorTree:
    """Return the tree at `path`, which must be relocated already."""
    version = (path / "VERSION").read_text().strip() if (path / "VERSION").exists() else ""
    if not version:
        raise ConfigurationError(
            f"{path} is no HTCondor tree", remedy="make one: python -m jobagent.testing.pool tree"
        )
    return CondorTree(path.resolve(), version)


def _make(work: Path, suite: str, kind: str) -> Path:
    """Download, unpack, select and patch; return the unrelocated tree inside `work`."""
    unpacked = work / "unpacked"
    version = ""
    for archive in _download(work, suite):
        _run(["dpkg-deb", "--extract", str(archive), str(unpacked)])
        if match := re.match(r"condor_([0-9.]+)", archive.name):
            version = match[1]
    tree = work / "tree"
    wanted = {directory: names.split() for directory, names in _WORKER.items()}
    if kind == "full":
        wanted = {directory: names + _FULL[directory].split() for directory, names in wanted.items()}
    for directory, names in wanted.items():
        (tree / directory).mkdir(parents=True)
        for name in names:
            source = next((p for s in _SOURCES[directory] if (p := unpacked / s / name).exists()), None)
            if source is not None:  # 23.9 and 25.x do not ship the same set
                shutil.copy(source, tree / directory / name)
    _patch_programs(tree)
    _copy_libraries(unpacked, tree)
    (tree / "VERSION").write_text(f"{version}\n")
    tree.chmod(0o755)
    return tree


def _patch_programs(tree: Path) -> None:
    placeholder = "/" + "P" * (relocation.FIELD_BYTES - 2)
    for program in relocation.elf_programs(tree):
        program.chmod(0o755)
        _run(["strip", "--strip-all", str(program)])
        _run(["patchelf", "--set-interpreter", placeholder, "--set-rpath", "$ORIGIN/../lib", str(program)])


def _copy_libraries(unpacked: Path, tree: Path) -> None:
    """Copy every shared library that the programs need, and what these need."""
    available = {path.name: path for path in sorted(unpacked.glob("**/*.so*")) if path.exists()}
    destination = tree / "lib"
    destination.mkdir()
    pending = {name for program in relocation.elf_programs(tree) for name in _needed(program)} | set(_DLOPENED)
    done: set[str] = set()
    while pending:
        name = pending.pop()
        done.add(name)
        if name not in available:
            raise ConfigurationError(f"no downloaded package has {name}", remedy="add its package to the list")
        library = destination / name
        shutil.copy(available[name], library)  # follows symlinks: one file under the name that programs ask for
        library.chmod(0o755)
        if not name.startswith(("ld-linux", "libc.so")):
            _run(["patchelf", "--set-rpath", "$ORIGIN", str(library)])
        pending |= set(_needed(library)) - done


def _needed(binary: Path) -> list[str]:
    return _run(["patchelf", "--print-needed", str(binary)]).split()


def _download(work: Path, suite: str) -> Sequence[Path]:
    apt = work / "apt"
    for directory in ("lists/partial", "cache/archives/partial", "debs"):
        (apt / directory).mkdir(parents=True)
    signed_by = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    (apt / "sources.list").write_text(f"deb {signed_by}{_mirror()} {suite} main\n")
    options = [
        f"--option={key}={value}"
        for key, value in {
            "Dir::Etc::sourcelist": apt / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": apt / "lists",
            "Dir::Cache": apt / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        }.items()
    ]
    _run(["apt-get", *options, "--quiet", "update"])
    _run(["apt-get", *options, "--quiet", "download", *(f"{p}/{suite}" for p in _PACKAGES)], cwd=apt / "debs")
    return sorted((apt / "debs").glob("*.deb"))


def _mirror() -> str:
    """Return the Debian mirror that this machine's own sources name, or $JOBAGENT_DEBIAN_MIRROR."""
    if mirror := os.environ.get("JOBAGENT_DEBIAN_MIRROR"):
        return mirror
    for source in _source_lines():
        if match := re.search(r"https?://\S+/debian/?(?=\s|$)", source):
            return match[0]
    raise ConfigurationError(
        "no Debian mirror is named in /etc/apt", remedy="set JOBAGENT_DEBIAN_MIRROR to the URL of one"
    )


def _source_lines() -> Iterator[str]:
    files: Iterable[Path] = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for file in files:
        if file.is_file():
            yield from (line for line in file.read_text().splitlines() if re.match(r"(?i)uris:|deb ", line))


def _run(argv: Sequence[str], *, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=APT_TIMEOUT_S, check=True)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{argv[0]} is not installed", remedy="make system-tools installs it") from error
    except subprocess.TimeoutExpired as error:
        raise SupplyError(f"{argv[0]} did not end within {APT_TIMEOUT_S:g} s") from error
    except subprocess.CalledProcessError as error:
        raise SupplyError(f"{' '.join(argv[:2])} failed: {error.stderr}") from error
    return done.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
