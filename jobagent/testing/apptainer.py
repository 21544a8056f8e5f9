"""A container runtime for tests: Debian's Apptainer, unpacked and run without root, and a tiny image for it.

HTCondor calls it as it calls a site's own: `SINGULARITY = PATH`.  Needs user namespaces, nothing else of the machine.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jobagent.errors import ConfigurationError
from jobagent.testing import accounts, debian_packages
from jobagent.testing.debian_packages import needed, run

SUITE = "sid"  # the only release of Debian with Apptainer in it
FORMAT = 1  # of the tree; a change makes new trees
TRY_TIMEOUT_S = 60.0

_PACKAGES = ("apptainer", "libc6", "libseccomp2", "libsqlite3-0", "zlib1g", "busybox-static")
_STARTER = Path("libexec/apptainer/bin/starter")  # from where it looks for its configuration three levels up
_BUSYBOX = ("sh", "cat", "echo", "env", "id", "ls", "mkdir", "mount", "sleep", "touch", "true", "wc")


@dataclass(frozen=True, slots=True)
class Apptainer:
    """An installed tree: the program, and the directory of an image with busybox and nothing else in it."""

    program: Path
    image: Path


def install(destination: Path) -> Apptainer:
    """Put Apptainer at `destination` (which must not exist), readable by everybody; 19 MB are downloaded once.

    Raises:
        SupplyError: The packages cannot be had.
        ConfigurationError: A tool is missing, or this machine lets nobody make a container.
    """
    shutil.copytree(_cached(), destination, symlinks=True)
    library = destination / "lib"
    loader = next(library.glob("ld-linux*.so.*"))
    for program in (destination / "bin" / "apptainer", destination / _STARTER):
        run(["patchelf", "--set-interpreter", str(loader), "--set-rpath", str(library), str(program)])
    installed = Apptainer(destination / "bin" / "apptainer", destination / "image")
    with tempfile.TemporaryDirectory(prefix="ja-home-", dir="/tmp") as name:
        home = Path(name)
        user = accounts.of_user()
        shutil.chown(home, user.uid, user.gid)
        _call(installed, home, "build", "--sandbox", str(home / "image"), str(destination / "content"))
        shutil.copytree(home / "image", installed.image, symlinks=True)
        _call(installed, home, "exec", str(installed.image), "/bin/true")
    return installed


def _call(installed: Apptainer, home: Path, *words: str) -> None:
    """Run it as jobs will, unprivileged; raises ConfigurationError with what it says where it cannot."""
    done = subprocess.run(
        [str(installed.program), "--silent", *words], env={"PATH": "/usr/bin:/bin", "HOME": str(home)}, cwd=home,
        capture_output=True, text=True, timeout=TRY_TIMEOUT_S, check=False, **accounts.of_user().popen,
    )  # fmt: skip
    if done.returncode:
        raise ConfigurationError(
            f"no container can be run here: {done.stderr.strip()[-500:]}", remedy="allow user namespaces"
        )


def _cached() -> Path:
    root = debian_packages.cache_directory() / "apptainer"
    root.mkdir(parents=True, exist_ok=True)
    tree = root / f"{SUITE}-{FORMAT}"
    with debian_packages.locked(root / f"{tree.name}.lock"):
        if not tree.exists():
            with tempfile.TemporaryDirectory(prefix=".making-", dir=root) as work:
                _make(Path(work)).rename(tree)
    return tree


def _make(work: Path) -> Path:
    unpacked, _ = debian_packages.unpack(work, SUITE, _PACKAGES)
    tree = work / "tree"
    for directory in ("bin", "lib/x86_64-linux-gnu", _STARTER.parent, "var/lib/apptainer/mnt/session", "content/bin"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(unpacked / "usr/bin/apptainer", tree / "bin")
    starter = next(unpacked.glob("usr/lib*/**/apptainer/bin/starter"))
    shutil.copy(starter, tree / _STARTER)
    (tree / "lib/x86_64-linux-gnu/apptainer").symlink_to("../../libexec/apptainer")
    shutil.copytree(unpacked / "etc/apptainer", tree / "etc/apptainer")
    _copy_libraries(unpacked, tree)
    _fill(unpacked / "usr/bin/busybox", tree / "content")
    tree.chmod(0o755)
    return tree


def _copy_libraries(unpacked: Path, tree: Path) -> None:
    available = {path.name: path for path in sorted(unpacked.glob("**/*.so*")) if path.exists()}
    pending = {name for program in (tree / "bin" / "apptainer", tree / _STARTER) for name in needed(program)}
    done: set[str] = set()
    while pending:
        name = pending.pop()
        done.add(name)
        if name not in available:
            raise ConfigurationError(f"no downloaded package has {name}", remedy="add its package to the list")
        library = tree / "lib" / name
        shutil.copy(available[name], library)
        library.chmod(0o755)
        if not name.startswith(("ld-linux", "libc.so")):
            run(["patchelf", "--set-rpath", "$ORIGIN", str(library)])
        pending |= set(needed(library)) - done


def _fill(busybox: Path, image: Path) -> None:
    for directory in ("dev", "etc", "proc", "root", "sys", "tmp", "var/tmp"):
        (image / directory).mkdir(parents=True)
    shutil.copy(busybox, image / "bin" / "busybox")
    for name in _BUSYBOX:
        (image / "bin" / name).symlink_to("busybox")
    (image / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (image / "etc" / "group").write_text("root:x:0:\n")
