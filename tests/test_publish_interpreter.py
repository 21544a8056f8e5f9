"""This Python and this machine's C++ headers, as packages for nodes that have neither."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobagent import manifest
from jobagent.central.packaging import elf
from jobagent.central.packaging.content import Content
from jobagent.central.packaging.cxxheaders import CxxHeaders
from jobagent.central.packaging.interpreter import LIBRARY, VERSION, Interpreter
from jobagent.errors import PublishError
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
    content = CxxHeaders(tmp_path).make(tmp_path, print)
    variables = {c.name: c.value.replace("{root}", str(content.path)) for c in content.environment}
    options = [f"-isystem{d}" for d in variables["CLING_CPPSYSINCL"].split(":")] + variables[
        "EXTRA_CLING_ARGS"
    ].split()
    program = (
        "#include <vector>\n#include <iostream>\n#include <thread>\n#include <unistd.h>\n#include <sys/stat.h>\n"
    )
    argv = [compiler, "-nostdinc", "-nostdinc++", "-fsyntax-only", *options, *own_headers(compiler), "-xc++", "-"]
    subprocess.run(argv, input=program, text=True, check=True, timeout=60)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of Debian packages, the only one that apt knows, and no compiler; returns its directory."""
    need("apt-get"), need("dpkg-deb")
    directory = tmp_path / "archive"
    directory.mkdir()
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{directory} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "-";\nDir::Etc::parts "-";\n'
    )
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if "++" in name else which(name))
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return directory


def add_package(archive: Path, name: str, version: str, *headers: str) -> None:
    """Put a package with these headers, each of one line that names it, into the archive."""
    tree = archive.parent / "packages" / name
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: VO <vo@example.org>\n"
    (tree / "DEBIAN" / "control").write_text(control + "Description: test\n")
    for header in headers:
        path = tree / "usr" / "include" / header
        path.parent.mkdir(parents=True)
        path.write_text(f"// {header}\n")
    file = archive / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", tree, file], check=True, capture_output=True, timeout=60)
    sums = f"Size: {file.stat().st_size}\nSHA256: {manifest.hash_file(file)}\n"
    with open(archive / "Packages", "a", encoding="utf-8") as index:
        index.write(f"{control}Filename: ./{file.name}\n{sums}Description: test\n\n")


def test_without_a_compiler_headers_come_from_the_distribution(archive: Path, tmp_path: Path) -> None:
    add_package(archive, "g++", "4:12.2.0-3")
    add_package(archive, "libstdc++-12-dev", "12.2.0-14", "c++/12/vector", "x86_64-linux-gnu/c++/12/bits/os.h")
    add_package(archive, "libstdc++-11-dev", "11.3.0-12", "c++/11/vector")
    add_package(archive, "libc6-dev", "2.36-9", "stdio.h/x", "x86_64-linux-gnu/bits/types.h")
    add_package(archive, "linux-libc-dev", "6.1.1", "linux/errno.h")
    source = CxxHeaders(tmp_path / "work")
    assert source.version.startswith("12.2.0-")
    content = source.make(tmp_path, print)
    variables = {c.name: c.value for c in content.environment}
    machine = "{root}/usr/include/x86_64-linux-gnu"
    assert variables["CLING_CPPSYSINCL"].split(":")[:2] == ["{root}/usr/include/c++/12", f"{machine}/c++/12"]
    assert variables["EXTRA_CLING_ARGS"] == f"-isystem {machine} -isystem {{root}}/usr/include"
    found = {str(p.relative_to(content.path)) for p in content.path.rglob("*") if p.is_file()}
    assert {"usr/include/c++/12/vector", "usr/include/linux/errno.h"} < found
    assert not [name for name in found if "c++/11" in name]


def test_without_compiler_and_archive_the_remedy_is_said(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="apt-get update failed") as failed:
        CxxHeaders(tmp_path / "work")
    assert failed.value.remedy.startswith("install g++")


def own_headers(compiler: str) -> list[str]:
    """The compiler's own directory (stddef.h), which ROOT's interpreter brings itself."""
    directory = subprocess.run(
        [compiler, "-print-file-name=include"], capture_output=True, text=True, check=True, timeout=30
    )
    return ["-idirafter", directory.stdout.strip()]
