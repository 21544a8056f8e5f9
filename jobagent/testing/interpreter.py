"""A Python with everything installed that any user of this machine may read.

Jobs run as other users than the developer, whose interpreter and checkout often lie below a closed home directory.
`readable` returns the running interpreter where everybody can read it, else a copy (of hard links where possible).
"""

from __future__ import annotations

import compileall
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import jobagent

_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3"}
_PATCH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python and the directory that holds its package `jobagent`."""

    program: Path
    code: Path


def readable(directory: Path) -> Interpreter:
    """Return an interpreter that imports `jobagent` and all its plugins for any user.

    A copy goes to `directory`, which must be readable itself and not exist yet.
    """
    packages = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    needed = [Path(sys.executable), *packages, *_own_packages()]
    if any(map(closed_part, needed)):
        return _copy(directory)
    return Interpreter(Path(sys.executable), Path(jobagent.__file__).parent.parent)


def closed_part(path: Path) -> Path | None:
    """Return the file or directory that keeps other users from `path`, if there is one."""
    resolved = path.resolve()
    if not resolved.stat().st_mode & stat.S_IROTH:
        return resolved
    return next((part for part in reversed(resolved.parents) if not part.stat().st_mode & stat.S_IXOTH), None)


def _own_packages() -> list[Path]:
    """The directories of `jobagent` and of the plugins that come with it, where they run from a checkout."""
    own = Path(jobagent.__file__).parent
    return [own, *sorted((own.parent / "plugins").glob("jobagent_*"))]


def _copy(directory: Path) -> Interpreter:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = directory / "lib" / version
    _link_tree(Path(sysconfig.get_path("stdlib")), library, _LEFT_OUT)
    site = library / "site-packages"
    for name in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        _link_tree(Path(name), site, set())
    for editable in site.glob("_jobagent*.pth"):
        editable.unlink()
    for package in _own_packages():
        shutil.rmtree(site / package.name, ignore_errors=True)
        shutil.copytree(package, site / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(site / package.name, quiet=1)  # jobs' users cannot write what they compile
    program = directory / "bin" / version
    program.parent.mkdir()
    shutil.copy(Path(sys.executable).resolve(), program)
    if shared := sysconfig.get_config_var("INSTSONAME") if sysconfig.get_config_var("Py_ENABLE_SHARED") else None:
        _link(str(Path(sysconfig.get_config_var("LIBDIR")) / shared), str(directory / "lib" / shared))
        subprocess.run(
            ["patchelf", "--set-rpath", "$ORIGIN/../lib", str(program)], check=True, timeout=_PATCH_TIMEOUT_S
        )
    for parent in (directory, *directory.glob("*"), library, site):
        parent.chmod(0o755)
    return Interpreter(program, site)


def _link_tree(source: Path, target: Path, left_out: set[str]) -> None:
    def ignore(_: str, names: list[str]) -> set[str]:
        return left_out.intersection(names)

    shutil.copytree(source, target, ignore=ignore, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """Link a file that everybody may read; copy it where links cannot be made or where it is closed."""
    try:
        if os.stat(source).st_mode & stat.S_IROTH:
            os.link(source, target)
            return
    except OSError:
        pass
    shutil.copy(source, target)
    os.chmod(target, os.stat(target).st_mode | stat.S_IROTH)
