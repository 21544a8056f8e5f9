"""A new version from one that the node has: the same tree, for a part of the bytes, whatever the versions are."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobagent import manifest
from jobagent.central.packaging import updating
from jobagent.central.packaging.pack import Packed, pack
from jobagent.errors import HostileArchive
from jobagent.job.relocation import RECORD, Record
from jobagent.job.updates import Base, apply, without
from jobagent.model import is_update
from jobagent.testing.world import Node, World

names = st.sampled_from(["a", "b", "lib/c-1.2.so", "lib/c-1.3.so", "lib/deep/d", "bin/tool", "e", "x/y"])
contents = st.sampled_from([b"", b"x", b"text\n" * 500, bytes(range(256)) * 100, b"text\n" * 501]) | st.binary(
    max_size=50
)
trees = st.dictionaries(names, contents, max_size=8)


def fill(tree: Path, files: Mapping[str, bytes]) -> Path:
    tree.mkdir(parents=True)
    for name, data in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if name.startswith("bin/") else 0o644)
    return tree


class Bump:
    """Two versions, and the update between them."""

    def __init__(self, directory: Path, old: Mapping[str, bytes], new: Mapping[str, bytes]) -> None:
        self.old_tree, self.new_tree = fill(directory / "old", old), fill(directory / "new", new)
        self.old: Packed = pack(self.old_tree, directory / "old.tar.zst")
        self.new: Packed = pack(self.new_tree, directory / "new.tar.zst")
        self.file = directory / "update"
        self.size = updating.make(
            directory / "old.tar.zst", self.old.entries, self.new_tree, self.new.entries, self.file
        )

    @property
    def base(self) -> Base:
        entries = manifest.scan(self.old_tree)
        if RECORD in {e.path for e in entries}:
            entries = without(Record.decode((self.old_tree / RECORD).read_bytes()), entries)
        return Base(self.old_tree, self.old.tree.manifest.sha256, entries)

    def apply(self, into: Path) -> None:
        into.mkdir()
        apply(self.file, self.base, self.new.tree.manifest, into)


@settings(max_examples=40, deadline=None)
@given(old=trees, new=trees)
def test_any_version_can_be_made_from_any_other(old: dict[str, bytes], new: dict[str, bytes]) -> None:
    directory = Path(tempfile.mkdtemp(prefix="jobagent-test-"))
    try:
        bump = Bump(directory, old, new)
        bump.apply(directory / "made")
        assert manifest.difference(bump.new.entries, directory / "made") == ""
    except (IsADirectoryError, FileExistsError, NotADirectoryError):
        pass  # the drawn names do not make a tree
    finally:
        shutil.rmtree(directory)


def test_five_percent_changed_files_cost_about_as_much(tmp_path: Path) -> None:
    content = random.Random(1)
    old = {f"share/{n % 10}/file{n}": content.randbytes(2000) for n in range(400)}
    new = old | {f"share/{n % 10}/file{n}": content.randbytes(2000) for n in range(0, 400, 20)}
    bump = Bump(tmp_path, old, new)
    assert bump.size < 0.08 * bump.new.archive.size_bytes


def test_a_library_that_was_built_anew_costs_its_difference(tmp_path: Path) -> None:
    content = random.Random(2)
    library = content.randbytes(1_000_000)
    rebuilt = library[:300_000] + content.randbytes(5000) + library[300_100:]
    bump = Bump(tmp_path, {"lib/libbig-1.0.so": library}, {"lib/libbig-1.1.so": rebuilt})
    assert bump.size < 0.02 * bump.new.archive.size_bytes
    bump.apply(tmp_path / "made")
    assert (tmp_path / "made/lib/libbig-1.1.so").read_bytes() == rebuilt


def test_links_modes_and_empty_directories_come_along(tmp_path: Path) -> None:
    old = fill(tmp_path / "o", {"bin/tool": b"same", "lib/plain": b"other"})
    (old / "gone").mkdir()
    bump = Bump(
        tmp_path / "b", {"bin/tool": b"same", "lib/plain": b"other"}, {"lib/tool": b"same", "bin/plain": b"other"}
    )
    (bump.new_tree / "empty").mkdir()
    (bump.new_tree / "link").symlink_to("lib/tool")
    again = pack(bump.new_tree, tmp_path / "again.tar.zst")
    updating.make(tmp_path / "b/old.tar.zst", bump.old.entries, bump.new_tree, again.entries, bump.file)
    (tmp_path / "made").mkdir()
    apply(bump.file, bump.base, again.tree.manifest, tmp_path / "made")
    assert manifest.difference(again.entries, tmp_path / "made") == ""


def test_files_that_relocation_rewrote_on_the_node_are_not_counted_on(tmp_path: Path) -> None:
    record = Record("/build/prefix", texts=("bin/config",)).encode()
    files = {RECORD: record, "bin/config": b"prefix=/build/prefix\n", "lib/same": b"same" * 1000}
    bump = Bump(tmp_path, files, files | {"VERSION": b"2"})
    (bump.old_tree / "bin/config").write_bytes(b"prefix=/cache/packages/0123/tree\n")
    bump.apply(tmp_path / "made")
    assert manifest.difference(bump.new.entries, tmp_path / "made") == ""


def test_what_stayed_is_linked_not_copied(tmp_path: Path) -> None:
    bump = Bump(tmp_path, {"lib/same": b"same" * 1000}, {"lib/same": b"same" * 1000, "new": b"new"})
    bump.apply(tmp_path / "made")
    assert (tmp_path / "made/lib/same").stat().st_ino == (bump.old_tree / "lib/same").stat().st_ino


@pytest.mark.acceptance(24, 25)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_update_is_refused_and_writes_nothing_outside(data: st.DataObject) -> None:
    directory = Path(tempfile.mkdtemp(prefix="jobagent-test-"))
    try:
        old = {"a": b"text\n" * 500, "lib/b": bytes(range(250)) * 2}
        bump = Bump(directory, old, old | {"a": b"text\n" * 499 + b"x", "c": b"new" * 100})
        raw = bytearray(bump.file.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, len(raw) - 1))
            raw[position : position + data.draw(st.integers(1, 3))] = data.draw(st.binary(max_size=3))
        bump.file.write_bytes(raw)
        before = {p for p in directory.rglob("*") if "made" not in p.parts}
        try:
            bump.apply(directory / "made")
        except HostileArchive as error:
            assert "\n" not in str(error)
        else:
            assert manifest.difference(bump.new.entries, directory / "made") == ""
        assert {p for p in directory.rglob("*") if "made" not in p.relative_to(directory).parts} == before
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{}", b"[]", b'{"format":2}', b'{"format":1}',
        b'{"format":1,"base":"x","tree":"y","manifest":[1,1],"changed":[["h",1,1,"../../etc/passwd"]],"new":[]}',
        b'{"format":1,"base":"x","tree":"y","manifest":[1e999,1],"changed":[],"new":[]}',
    ],
)  # fmt: skip
def test_a_malformed_header_is_refused(tmp_path: Path, line: bytes) -> None:
    bump = Bump(tmp_path, {"a": b"a"}, {"a": b"b"})
    bump.file.write_bytes(line + b"\n")
    with pytest.raises(HostileArchive):
        bump.apply(tmp_path / "made")


def test_an_update_is_refused_for_another_base(tmp_path: Path) -> None:
    bump = Bump(tmp_path, {"a": b"a"}, {"a": b"b"})
    other = Base(bump.old_tree, "0" * 64, bump.base.plain)
    (tmp_path / "made").mkdir()
    with pytest.raises(HostileArchive, match="another base"):
        apply(bump.file, other, bump.new.tree.manifest, tmp_path / "made")


# --- on a grid


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("world"))
    files: dict[str, str | bytes] = {"bin/hello": "#!/bin/sh\necho hello\n", "lib/data": os.urandom(500_000)}
    world.publish("Hello", files, version="1")
    world.publish("Hello", files | {"bin/hello": "#!/bin/sh\necho hello again\n"}, version="2")
    with world.serving():
        yield world


@pytest.fixture
def node(world: World, tmp_path: Path) -> Node:
    return world.node(f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{tmp_path / "cache"}"\n')


def received(node: Node, package: str, tmp_path: Path) -> tuple[int, str]:
    """Run a job; return the bytes that it fetched, and what it printed."""
    (tmp_path / "job.jdl").write_text(f'Executable = "hello";\nPackages = {{"{package}"}};\n')
    done = node.call("run", tmp_path / "job.jdl", "--json", tmp_path / "report.json", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "report.json").read_text()
    return sum(json.loads(report)["traffic"].values()), done.stdout + done.stderr


@pytest.mark.swarm
def test_a_node_with_the_old_version_fetches_only_what_changed(node: Node, tmp_path: Path) -> None:
    whole, _ = received(node, "Hello::1", tmp_path)
    part, said = received(node, "Hello::2", tmp_path)
    assert whole > 500_000 and part < 0.1 * whole
    assert "hello again" in said
    assert "Hello::2" in node.call("cache", "verify").stdout
    packages = node.call("list").stdout
    assert "~" not in packages and packages.count("VO_ALICE@Hello") == 2


@pytest.mark.swarm
def test_a_node_whose_old_version_is_damaged_fetches_the_whole(node: Node, tmp_path: Path) -> None:
    received(node, "Hello::1", tmp_path)
    (victim,) = (tmp_path / "cache" / "packages").glob("*/tree/lib/data")
    victim.chmod(0o644)
    victim.write_bytes(os.urandom(500_000))
    whole, said = received(node, "Hello::2", tmp_path)
    assert whole > 500_000 and "the whole is fetched" in said and "hello again" in said
    assert node.call("cache", "verify", "VO_ALICE@Hello::2").returncode == 0


@pytest.mark.swarm
def test_a_node_that_does_not_seed_keeps_no_second_copy(world: World, tmp_path: Path) -> None:
    extra = f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{tmp_path / "cache"}"\n'
    node = world.node(extra, sections={"swarm": "is_seeding = false\n"})
    received(node, "Hello::1", tmp_path)
    part, _ = received(node, "Hello::2", tmp_path)
    assert part < 100_000
    assert list((tmp_path / "cache" / "archives").iterdir()) == []
    usage = json.loads(node.call("cache", "--json", "du").stdout)["usage"]
    assert usage["archive_bytes"] == 0 < usage["stored_bytes"]


def test_updates_are_nothing_that_a_job_can_ask_for() -> None:
    assert is_update("Linux-x86_64~0123456789abcdef") and not is_update("Linux-x86_64")
