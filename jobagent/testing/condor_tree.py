"""A relocatable HTCondor made of Debian packages, without touching the host's own packages.

Each program gets the tree's own loader and libraries, so that an HTCondor built for a newer Debian runs here.
A tree is made once per suite and kind under the user's cache directory; `install` copies it to where it is used.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobagent.condor.pilots import relocation
from jobagent.errors import ConfigurationError
from jobagent.testing import debian_packages
from jobagent.testing.debian_packages import needed, run

SUITES = ("sid", "trixie")  # HTCondor 25.x of Debian unstable, 23.x of Debian stable
KINDS = ("full", "worker")
FORMAT = 4  # of the tree; a change makes new trees

_PACKAGES = (
    "condor", "libc6", "libstdc++6", "libgcc-s1", "libgomp1", "libssl3t64", "libsqlite3-0", "libuuid1",
    "libpcre2-8-0", "libexpat1", "zlib1g", "libzstd1",
)  # fmt: skip
_DLOPENED = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2", "libgcc_s.so.1")  # named by no program

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
    return debian_packages.cache_directory() / "condor"


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
    with debian_packages.locked(root / f"{tree.name}.lock"):
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
    unpacked, archives = debian_packages.unpack(work, suite, _PACKAGES)
    version = next((match[1] for name in archives if (match := re.match(r"condor_([0-9.]+)", name))), "")
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
    sandbox = unpacked / _SOURCES["libexec"][0] / "singularity_test_sandbox"
    if kind == "full" and sandbox.exists():  # what the startd tries a container runtime with; 23.9 needs none
        shutil.copytree(sandbox, tree / "libexec" / sandbox.name)
    _patch_programs(tree)
    _copy_libraries(unpacked, tree)
    (tree / "VERSION").write_text(f"{version}\n")
    tree.chmod(0o755)
    return tree


def _patch_programs(tree: Path) -> None:
    placeholder = "/" + "P" * (relocation.FIELD_BYTES - 2)
    for program in relocation.elf_programs(tree):
        program.chmod(0o755)
        run(["strip", "--strip-all", str(program)])
        run(["patchelf", "--set-interpreter", placeholder, "--set-rpath", "$ORIGIN/../lib", str(program)])


def _copy_libraries(unpacked: Path, tree: Path) -> None:
    """Copy every shared library that the programs need, and what these need."""
    available = {path.name: path for path in sorted(unpacked.glob("**/*.so*")) if path.exists()}
    destination = tree / "lib"
    destination.mkdir()
    pending = {name for program in relocation.elf_programs(tree) for name in needed(program)} | set(_DLOPENED)
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
            run(["patchelf", "--set-rpath", "$ORIGIN", str(library)])
        pending |= set(needed(library)) - done
