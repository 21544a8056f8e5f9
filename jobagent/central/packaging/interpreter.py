"""The running CPython → source of a package that runs on a node without any Python.

Copied are the interpreter, its shared library and its standard library, without tests, Tk, IDLE and whatever was
installed into it; and the shared libraries that these need, except glibc's: the node's must be of the same release
or newer.  `with_libc` brings glibc and the C++ library too, with their own loader: the interpreter then runs on older
nodes, and what is loaded into it must come from packages, not from the node.  A pyenv, python.org or distribution
build will do: only what belongs to Python itself is taken.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from jobagent.central.packaging import bytecode, elf
from jobagent.central.packaging.content import Content, assign, prepend
from jobagent.central.packaging.provenance import Component, Origin
from jobagent.central.packaging.relocatable import Report, make_relocatable, write_record
from jobagent.errors import PublishError
from jobagent.job.relocation import LOADER_PLACEHOLDER, Record, is_prefix

VERSION = sysconfig.get_python_version()  # as in 3.11
LIBRARY = f"lib/python{VERSION}"
LEFT_OUT = frozenset(
    {"__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "lib2to3",
     "site-packages", "dist-packages", f"config-{VERSION}", "LICENSE.txt", "pydoc_data"}
)  # fmt: skip
LIBC_DIRECTORY = "lib/libc"  # in no search path of other programs: they have loaders of their own
_LIBC = ("libc.so.6", "libm.so.6", "libmvec.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1",
         "libresolv.so.2", "libgcc_s.so.1", "libstdc++.so.6")  # fmt: skip
_LEFT_OUT_STARTS = ("_tkinter.", "_test", "_ctypes_test.", "xxlimited", f"config-{VERSION}-")


class Interpreter:
    """The running interpreter as a source."""

    name = "Python"

    def __init__(self, *, with_libc: bool = False) -> None:
        self._with_libc = with_libc
        self.version = platform.python_version()

    def make(self, work: Path, report: Report) -> Content:
        """See `Source`."""
        tree = work / "tree"
        (tree / "bin").mkdir(parents=True)
        program = tree / f"bin/python{VERSION}"
        shutil.copyfile(_executable(), program)
        program.chmod(0o755)
        for name in ("python3", "python"):
            (tree / "bin" / name).symlink_to(program.name)
        _copy_library(Path(sysconfig.get_path("stdlib")), tree / LIBRARY)
        _copy_extensions(tree)
        _bring_libraries(tree)
        record = make_relocatable(tree, sys.base_prefix, report) if is_prefix(sys.base_prefix) else None  # not /usr
        if self._with_libc:
            loader = _bring_libc(tree, program)
            record = record or Record(sysconfig.get_path("stdlib"))
            record = dataclasses.replace(record, loaders=(*record.loaders, (loader, f"bin/{program.name}")))
            write_record(tree, record)
        bytecode.compile_modules(tree / LIBRARY, leave_out=_below(LIBRARY, record.texts if record else ()))
        libc = " ".join(platform.libc_ver())
        need = f"with {libc}" if self._with_libc else f"needs {libc} or later"
        return Content(
            path=tree,
            origin=Origin(
                "interpreter",
                [Component("cpython", self.version, purl=f"pkg:generic/cpython@{self.version}", licence="PSF-2.0")],
                {"jobagent:libc": libc},
            ),
            environment=[prepend("PATH", "{root}/bin"), assign("PYTHONNOUSERSITE", "1")],
            description=f"CPython {self.version}; {need}",
            licence="PSF-2.0",
        )


def _executable() -> Path:
    """Return the real program: in a virtual environment `sys.executable` is a link to it, or a copy."""
    for name in (f"python{VERSION}", "python3"):
        path = Path(sys.base_exec_prefix) / "bin" / name
        if path.exists():
            return path.resolve()
    raise PublishError(f"no python{VERSION} below {sys.base_exec_prefix}/bin")


def _copy_library(source: Path, target: Path) -> None:
    def left_out(directory: str, names: list[str]) -> set[str]:
        return {n for n in names if n in LEFT_OUT or n.startswith(_LEFT_OUT_STARTS)}

    # Links of distributions lead to files elsewhere (/etc/python3.11/sitecustomize.py): take what they lead to.
    shutil.copytree(source, target, ignore=left_out, ignore_dangling_symlinks=True)
    (target / "site-packages").mkdir()


def _copy_extensions(tree: Path) -> None:
    """Copy the extension modules where they are not below the standard library."""
    source = Path(sysconfig.get_config_var("DESTSHARED"))
    target = tree / LIBRARY / "lib-dynload"
    if not target.is_dir() and source.is_dir():
        _copy_library(source, target)


def _bring_libraries(tree: Path) -> None:
    """Copy shared libraries into `lib` and let every object find them there."""
    library = tree / "lib"
    own = list(elf.objects(tree))
    search = [Path(sys.base_exec_prefix) / "lib", Path(sysconfig.get_config_var("LIBDIR"))]
    for name, path in elf.libraries(own, search).items():
        shutil.copyfile(path.resolve(), library / name)
        (library / name).chmod(0o755)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda path: _slim(tree, path), elf.objects(tree)))


def _bring_libc(tree: Path, program: Path) -> str:
    """Copy glibc and the C++ library; return their loader, relative to the tree: the installer names it in `program`.

    The program itself asks for all of them: what is loaded later and asks for one finds it there already.
    """
    directory = tree / LIBC_DIRECTORY
    directory.mkdir()
    own = Path(elf.interpreter(program)).resolve()
    shutil.copyfile(own, directory / own.name)
    found = elf.beside_libc(program, _LIBC)
    for name, path in found.items():
        shutil.copyfile(path.resolve(), directory / name)
    for path in directory.iterdir():
        path.chmod(0o755)
    elf.set_runpath(program, ["$ORIGIN/../lib", "$ORIGIN/../" + LIBC_DIRECTORY])
    elf.add_needed(program, list(found))
    elf.set_interpreter(program, LOADER_PLACEHOLDER)
    return f"{LIBC_DIRECTORY}/{own.name}"


def _slim(tree: Path, path: Path) -> None:
    elf.strip(path)
    depth = len(path.relative_to(tree).parts) - 1
    is_beside = path.parent == tree / "lib"
    elf.set_runpath(path, ["$ORIGIN" if is_beside else "$ORIGIN/" + "../" * depth + "lib"])


def _below(directory: str, paths: Iterable[str]) -> set[str]:
    return {p.removeprefix(directory + "/") for p in paths if p.startswith(directory + "/")}
