"""This Python and this machine's C++ headers, as packages for nodes that have neither."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobagent import manifest
from jobagent.central.packaging import elf
from jobagent.central.packaging.content import Content
from jobagent.central.packaging.cxxheaders import CxxHeaders
from jobagent.central.packaging.interpreter import LIBRARY, VERSION, Interpreter
from jobagent.job import relocation
from jobagent.model import EnvironmentAction, EnvironmentChange
from tests.conftest import need

IMPORTS = "ssl, sqlite3, ctypes, lzma, bz2, zlib, hashlib, json, asyncio, multiprocessing, uuid"


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    return Interpreter().make(tmp_path_factory.mktemp("interpreter"), print)


@pytest.fixture(scope="session")
def tree(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter, installed elsewhere and made read-only by nobody but the tests."""
    final = tmp_path_factory.mktemp("installed") / "tree"
    subprocess.run(["cp", "-a", content.path, final], check=True, timeout=60)
    relocation.relocate(final, final, manifest.scan(final))
    return final


def bare_node(tree: Path) -> list[str]:
    """A command prefix: a root directory with the C library, the tree and nothing else."""
    command = [
        need("bwrap"),
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        tree,
        "/py",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
    ]
    libraries = subprocess.run(["ldd", "/bin/true"], capture_output=True, text=True, check=True, timeout=30).stdout
    directories = {Path(word).parent for word in libraries.split() if word.startswith("/")}
    for directory in sorted(directories):
        for path in directory.iterdir():
            if elf.GLIBC_LIBRARIES.fullmatch(path.name):
                command += ["--ro-bind", path, f"{directory}/{path.name}"]
    return [str(word) for word in [*command, "--setenv", "PATH", "/py/bin", "--"]]


def test_it_runs_on_a_node_with_nothing_but_a_c_library(tree: Path) -> None:
    context = "int(ssl.create_default_context().verify_mode)"
    script = f"import sys, {IMPORTS}; print(sys.version_info[:2], sys.prefix, {context})"
    result = subprocess.run(
        [*bare_node(tree), "/py/bin/python3", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stdout == f"{sys.version_info[:2]} /py 2\n", result.stderr


def test_modules_come_compiled(tree: Path) -> None:
    script = "import json, sys; print(json.__cached__, json.decoder.__spec__.cached)"
    argv = [tree / "bin/python3", "-v", "-c", script]
    result = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60, env={})
    assert f"code object from '{tree}/{LIBRARY}/__pycache__/json" not in result.stderr
    assert f"matches {tree}/{LIBRARY}/json/__init__.py" in result.stderr


def test_what_names_the_build_prefix_is_relocated_and_not_compiled(tree: Path) -> None:
    script = "import sysconfig; print(sysconfig.get_path('stdlib'), sysconfig.get_config_var('prefix'))"
    result = subprocess.run(
        [tree / "bin/python3", "-c", script], capture_output=True, text=True, check=True, timeout=60, env={}
    )
    library, prefix = result.stdout.split()
    assert library == f"{tree}/{LIBRARY}"
    # /usr is not the prefix of an interpreter alone: it stays as it is
    assert prefix == (str(tree) if sys.base_prefix != "/usr" else "/usr")


def test_nothing_is_left_of_tests_toolkits_and_installed_packages(tree: Path) -> None:
    library = tree / LIBRARY
    assert not {"test", "idlelib", "tkinter", "ensurepip"} & {p.name for p in library.iterdir()}
    assert list((library / "site-packages").iterdir()) == []
    assert {p.name for p in (tree / "bin").iterdir()} == {"python", "python3", f"python{VERSION}"}
    assert not list(tree.rglob("*.a"))


def test_it_says_what_it_needs_and_what_it_sets(content: Content) -> None:
    assert "needs glibc" in content.description
    assert EnvironmentChange(EnvironmentAction.PREPEND, "PATH", "{root}/bin") in content.environment


def test_with_a_c_library_of_its_own_it_takes_nothing_from_the_node(tmp_path: Path) -> None:
    made = Interpreter(with_libc=True).make(tmp_path, print)
    final = tmp_path / "installed"
    made.path.rename(final)
    relocation.relocate(final, final, manifest.scan(final))
    # no loader and no library but the package's own
    command = [need("bwrap"), "--unshare-all", "--die-with-parent", "--ro-bind", final, final, "--proc", "/proc"]
    script = (
        f"import sys, {IMPORTS}, socket, pwd\n"
        "maps = {line.split()[5] for line in open('/proc/self/maps') if '.so' in line}\n"
        f"print([path for path in maps if not path.startswith({str(final)!r})], sys.executable)"
    )
    argv = [*map(str, command), "--", final / "bin/python3", "-c", script]
    result = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env={})
    assert result.stdout == f"[] {final}/bin/python3\n", result.stderr
    assert f"{made.description}".startswith("CPython") and "with glibc" in made.description


@pytest.mark.slow
def test_the_same_interpreter_is_made_to_the_byte(content: Content, tmp_path: Path) -> None:
    again = Interpreter().make(tmp_path, print)
    assert manifest.difference(manifest.scan(content.path), again.path) == ""


def test_headers_are_found_where_their_variables_say(tmp_path: Path) -> None:
    compiler = need("c++")
    source = CxxHeaders()
    content = source.make(tmp_path, print)
    variables = {c.name: c.value.replace("{root}", str(content.path)) for c in content.environment}
    options = [f"-isystem{d}" for d in variables["CLING_CPPSYSINCL"].split(":")] + variables[
        "EXTRA_CLING_ARGS"
    ].split()
    program = (
        "#include <vector>\n#include <iostream>\n#include <thread>\n#include <unistd.h>\n#include <sys/stat.h>\n"
    )
    argv = [compiler, "-nostdinc", "-nostdinc++", "-fsyntax-only", *options, *own_headers(compiler), "-xc++", "-"]
    subprocess.run(argv, input=program, text=True, check=True, timeout=60)


def own_headers(compiler: str) -> list[str]:
    """The compiler's own directory (stddef.h), which ROOT's interpreter brings itself."""
    directory = subprocess.run(
        [compiler, "-print-file-name=include"], capture_output=True, text=True, check=True, timeout=30
    )
    return ["-idirafter", directory.stdout.strip()]
