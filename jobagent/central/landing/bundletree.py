"""A Python with the agent in it that runs on any Linux of its machine type: interpreter, libraries and loader.

Made of the running interpreter and of the distributions that the agent needs on a worker node.  Everything is named
relative to the tree, which therefore runs wherever it is unpacked.  Two builds from the same inputs are equal byte by
byte.  Knows nothing of archives and pilots.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import jobagent
from jobagent.errors import ConfigurationError

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
TOOL_TIMEOUT_S = 120.0

DISTRIBUTIONS = ("libtorrent", "pluggy", "tuf", "securesystemslib", "urllib3", "zstandard")

# Not for worker nodes: tests, documentation, development, graphics, and what would pull in large libraries.
_LEFT_OUT_OF_STDLIB = frozenset(
    {
        *("__pycache__", "__phello__", "config", "site-packages", "dist-packages", "lib-dynload", "LICENSE.txt"),
        *("sitecustomize.py", "usercustomize.py", "antigravity.py", "this.py", "nturl2path.py", "msilib"),
        *("test", "tests", "unittest", "doctest.py", "pdb.py", "pydoc.py", "pydoc_data", "pyclbr.py"),
        *("distutils", "ensurepip", "venv", "lib2to3", "idlelib", "tkinter", "turtle.py", "turtledemo", "curses"),
        *("sqlite3", "dbm", "xmlrpc", "wsgiref", "cgi.py", "cgitb.py", "ftplib.py", "imaplib.py", "mailbox.py"),
        *("nntplib.py", "poplib.py", "smtpd.py", "smtplib.py", "telnetlib.py"),
    }
)
_LEFT_OUT_OF_DYNLOAD = re.compile(
    r"_codecs_|_crypt|_curses|_dbm|_gdbm|_lsprof|_sqlite3|_test|_tkinter|_xx|audioop|nis|ossaudiodev|readline|spwd|xx|_ctypes_test"
)
_LEFT_OUT_OF_DISTRIBUTIONS = re.compile(
    r"(^|/)(tests?|__pycache__)/|\.pyi$|py\.typed$|^\.\.|zstandard/(_cffi\.|backend_cffi)|urllib3/contrib/(emscripten|socks)"
)
_WORKER_SUBPACKAGES = ("cli", "condor", "job", "node")  # of jobagent, with its top-level modules

_PROGRAM = """\
#!/bin/sh
# Starts the interpreter of this tree on the tree's own loader and libraries, wherever it is.
case $0 in
    /*) root=${0%/bin/*} ;;
    *) root=$(cd "$(dirname "$0")/.." && pwd -P) ;;
esac
set -- ARGUMENTS"$@"
[ -z "${LC_CTYPE+set}" ] || set -- -X has_lc_ctype "$@"
set -- --inhibit-cache --library-path "$root/lib" --argv0 "$root/bin/python" "$root/bin/PYTHON" -I "$@"
exec "$root/lib/LOADER" "$@"
"""

# In the C locale Python puts LC_CTYPE into its environment (PEP 538); payloads should not inherit that.
# Debian's Python looks for modules in dist-packages only.
_SITE_CUSTOMIZE = """\
import os, sys
site_packages = os.path.join(os.path.dirname(os.__file__), "site-packages")
if site_packages not in sys.path:
    sys.path.append(site_packages)
if "has_lc_ctype" not in sys._xoptions:
    os.environ.pop("LC_CTYPE", None)
"""


def assemble(tree: Path, agent: Path) -> None:
    """Make the tree in the empty directory `tree`, with the agent that `copy_agent` put into `agent`.

    Raises:
        ConfigurationError: A distribution or a tool (ldd, strip) is missing here.
    """
    library = tree / "lib" / VERSION
    site = library / "site-packages"
    for directory in (tree / "bin", library / "lib-dynload", site):
        directory.mkdir(parents=True)
    program = Path(sys.executable).resolve()
    shutil.copy(program, tree / "bin" / VERSION)
    _copy_standard_library(library)
    (library / "sitecustomize.py").write_text(_SITE_CUSTOMIZE)
    for name in DISTRIBUTIONS:
        _copy_distribution(name, site)
    shutil.copytree(agent, site, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    loader = _copy_libraries([program, *_extensions(library)], tree / "lib")
    for binary in _binaries(tree):
        if binary.name != loader:
            _run(["strip", "--strip-all", str(binary)])
    compile_sources(library, is_sourceless=True)
    for name, arguments in (("python", ""), ("jobagent", "-m jobagent ")):
        text = _PROGRAM.replace("LOADER", loader).replace("PYTHON", VERSION).replace("ARGUMENTS", arguments)
        (tree / "bin" / name).write_text(text)
    _set_modes(tree)


def copy_agent(site: Path) -> None:
    """Copy what a worker node needs of the agent itself, and the plugins, with the entry points that name them."""
    own = Path(jobagent.__file__).resolve().parent
    for source in sorted(own.rglob("*")):
        relative = source.relative_to(own)
        is_wanted = len(relative.parts) == 1 or relative.parts[0] in _WORKER_SUBPACKAGES
        if is_wanted and source.is_file() and "__pycache__" not in relative.parts:
            _copy(source, site / "jobagent" / relative)
    distribution = _distribution("jobagent")
    plugins = {
        e.value.partition(":")[0].partition(".")[0] for e in distribution.entry_points if e.group == "jobagent"
    }
    for plugin in sorted(plugins - {"jobagent"}):
        _copy_package(plugin, site)
    installed = Path("condor", "execution_point", "sitecfg")  # where jobagent.condor.execution_point.configure looks
    settings = next((d for d in (own / installed, own.parent / "sitecfg" / "condor") if d.is_dir()), None)
    for source in sorted(settings.iterdir()) if settings else ():
        _copy(source, site / "jobagent" / installed / source.name)
    (site / "jobagent" / "BUILD").write_text(_digest_of_sources(site) + "\n")
    information = site / f"jobagent-{distribution.version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: jobagent\nVersion: {distribution.version}\n")
    entries = sorted(f"{e.name} = {e.value}\n" for e in distribution.entry_points if e.group == "jobagent")
    (information / "entry_points.txt").write_text("[jobagent]\n" + "".join(entries))


def _digest_of_sources(site: Path) -> str:
    """Return a name for the agent below `site`: equal where all its files are."""
    agents = [site / "jobagent", *sorted(site.glob("jobagent_*"))]
    files = sorted(path for agent in agents for path in agent.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(site)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def compile_sources(directory: Path, *, is_sourceless: bool) -> None:
    """Compile every source below `directory`; the sources go where they are not wanted.

    A fresh interpreter compiles, because what was interned before shows in the bytes; checks of the sources' times
    are off, because the bytes must not depend on times.
    """
    sources = [str(path.relative_to(directory)) for path in sorted(directory.rglob("*.py"))]
    argv = [sys.executable, "-I", "-c", _COMPILER, "sourceless" if is_sourceless else "cached"]
    _run(argv, cwd=directory, stdin="".join(f"{source}\n" for source in sources))


_COMPILER = """
import importlib.util, os, py_compile, sys
for source in sys.stdin.read().splitlines():
    target = source + "c" if sys.argv[1] == "sourceless" else importlib.util.cache_from_source(source)
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(source, target, source, doraise=True, invalidation_mode=mode)
    if sys.argv[1] == "sourceless":
        os.unlink(source)
"""


def _copy_standard_library(library: Path) -> None:
    source = Path(sysconfig.get_path("stdlib"))

    def left_out(_: str, names: list[str]) -> set[str]:
        return {
            name
            for name in names
            if name in _LEFT_OUT_OF_STDLIB
            or name.startswith(("config-", "_sysconfigdata"))  # how and where the interpreter was compiled
            or name.endswith((".so", ".exe"))
        }

    shutil.copytree(source, library, ignore=left_out, dirs_exist_ok=True)
    dynload = next(
        d for d in (source / "lib-dynload", Path(sysconfig.get_path("platstdlib")) / "lib-dynload") if d.is_dir()
    )
    for extension in sorted(dynload.glob("*.so")):
        if not _LEFT_OUT_OF_DYNLOAD.match(extension.name):
            _copy(extension, library / "lib-dynload" / extension.name)


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigurationError(
            f"{name} is not installed here, the bundle needs it", remedy=f"pip install {name}"
        ) from error


def _copy_distribution(name: str, site: Path) -> None:
    distribution = _distribution(name)
    for file in distribution.files or ():
        path = file.as_posix()
        if ".dist-info/" not in path and not _LEFT_OUT_OF_DISTRIBUTIONS.search(path):
            _copy(Path(str(distribution.locate_file(file))), site / path)


def _copy_package(name: str, site: Path) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(f"the plugin package {name} is not importable here", remedy="install jobagent again")
    source = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            _copy(path, site / name / path.relative_to(source))


def _copy_libraries(binaries: Iterable[Path], directory: Path) -> str:
    """Copy every shared library that `binaries` need, and the loader; return the loader's name."""
    loader = ""
    for binary in binaries:
        for name, path in libraries_of(binary).items():
            if name.startswith("ld-linux"):
                loader = name
            if not (directory / name).exists():
                _copy(path.resolve(), directory / name)
    if not loader:
        raise ConfigurationError(f"{sys.executable} is not a dynamically linked glibc program")
    return loader


def libraries_of(binary: Path) -> dict[str, Path]:
    """Return the shared libraries that a binary needs on this machine, the loader too, by the name that it asks for.

    Raises:
        ConfigurationError: One is missing here.
    """
    found: dict[str, Path] = {}
    for line in _run(["ldd", str(binary)]).splitlines():
        match = re.match(r"\s*(?:(\S+) => )?(/\S+) \(0x", line)
        if match is not None:
            found[match[1] or Path(match[2]).name] = Path(match[2])
        elif "not found" in line:
            raise ConfigurationError(f"{binary} needs a library that is missing here: {line.strip()}")
    return found


def _extensions(library: Path) -> list[Path]:
    return sorted(library.rglob("*.so"))


def _binaries(tree: Path) -> list[Path]:
    def is_elf(path: Path) -> bool:
        with open(path, "rb") as stream:
            return stream.read(4) == b"\x7fELF"

    return sorted(path for path in tree.rglob("*") if path.is_file() and is_elf(path))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _set_modes(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        is_program = path.is_dir() or path.parent.name == "bin" or ".so" in path.name
        path.chmod(0o755 if is_program else 0o644)


def _run(argv: Sequence[str], *, cwd: Path | None = None, stdin: str = "") -> str:
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "PYTHONHASHSEED": "0"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"cannot run {argv[0]}: {error}", remedy="install binutils and libc-bin") from error
    if done.returncode:
        raise ConfigurationError(f"{' '.join(argv[:3])} failed: {done.stderr[-300:]}")
    return done.stdout
