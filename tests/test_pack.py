"""Trees become archives, the same bytes every time, and come back as they were."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobagent import manifest
from jobagent.central.packaging import pack as packing
from jobagent.central.packaging.pack import FRAME_BYTES, pack
from jobagent.errors import PublishError
from tests.conftest import need
from tests.packages import package_of, unpack


def fill(tree: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = fill(tmp_path / "tree", {"bin/run": b"#!/bin/sh\n", "lib/data": os.urandom(50_000), "ä/ö": b"x", "e": b""})
    (root / "bin/run").chmod(0o755)
    (root / "empty").mkdir()
    (root / "lib/link").symlink_to("../bin/run")
    fill(root, {"long/" + "n" * 120 + "/" + "m" * 200: b"pax"})
    return root


def test_an_unpacked_archive_is_the_packed_tree(tree: Path, tmp_path: Path) -> None:
    packed = pack(tree, tmp_path / "a.tar.zst")
    entries = unpack(tmp_path / "a.tar.zst", package_of(packed), tmp_path / "out")
    assert manifest.digest(entries) == packed.tree.manifest
    assert manifest.difference(packed.entries, tmp_path / "out") == ""


def test_the_archive_is_what_packing_says_it_is(tree: Path, tmp_path: Path) -> None:
    packed = pack(tree, tmp_path / "a.tar.zst")
    data = (tmp_path / "a.tar.zst").read_bytes()
    assert (packed.archive.sha256, packed.archive.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))


def test_standard_tar_unpacks_it(tree: Path, tmp_path: Path) -> None:
    tar = need("tar")
    need("zstd")
    fill(tree, {"big": random.Random(1).randbytes(2 * FRAME_BYTES)})  # several frames
    packed = pack(tree, tmp_path / "a.tar.zst")
    (tmp_path / "out").mkdir()
    subprocess.run([tar, "--zstd", "-xf", tmp_path / "a.tar.zst", "-C", tmp_path / "out"], check=True, timeout=60)
    assert manifest.difference(packed.entries, tmp_path / "out") == ""


def test_times_order_owners_and_modes_of_others_do_not_change_a_byte(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sorted(tree.rglob("*"), reverse=True):  # created in another order
        target = copy / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_dir():
            target.mkdir(exist_ok=True, mode=0o700)
        else:
            target.write_bytes(path.read_bytes())
            target.chmod(path.stat().st_mode & 0o700 | 0o040)
            os.utime(target, (1, 1))
            if os.geteuid() == 0:
                os.chown(target, 12345, 54321)
    assert pack(tree, tmp_path / "a") == pack(copy, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_number_of_cores_does_not_change_a_byte(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tree, {"big": random.Random(1).randbytes(2 * FRAME_BYTES)})
    many = pack(tree, tmp_path / "a")
    monkeypatch.setattr(packing.os, "cpu_count", lambda: 1)
    assert pack(tree, tmp_path / "b") == many


def test_hard_links_and_equal_files_are_stored_once_and_alike(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    linked = fill(tmp_path / "linked", {"a": data})
    os.link(linked / "a", linked / "b")
    copied = fill(tmp_path / "copied", {"a": data, "b": data})
    packed = pack(linked, tmp_path / "linked.tar.zst")
    assert packed == pack(copied, tmp_path / "copied.tar.zst")
    assert packed.archive.size_bytes < 1.1 * len(data)
    unpack(tmp_path / "linked.tar.zst", package_of(packed), tmp_path / "out")
    assert (tmp_path / "out/b").read_bytes() == data
    assert (tmp_path / "out/b").stat().st_ino == (tmp_path / "out/a").stat().st_ino


def test_versions_that_share_files_share_most_of_the_archive(tmp_path: Path) -> None:
    randomness = random.Random(7)
    files = {f"lib/{n:04}": randomness.randbytes(100_000) for n in range(400)}
    pack(fill(tmp_path / "v1", files), tmp_path / "v1.tar.zst", level=1)
    files |= {f"lib/{n:04}": randomness.randbytes(120_000) for n in randomness.sample(range(400), 4)}
    files["lib/0000-new"] = randomness.randbytes(1_000_000)
    pack(fill(tmp_path / "v2", files), tmp_path / "v2.tar.zst", level=1)
    old, new = (frames_of(tmp_path / f"v{n}.tar.zst") for n in (1, 2))
    shared = sum(len(frame) for frame in new if frame in set(old))
    assert shared > 0.6 * sum(map(len, new))


def frames_of(archive: Path) -> list[bytes]:
    from jobagent_archives.streams import frame_spans

    with open(archive, "rb") as stream:
        spans = frame_spans(stream)
        data = archive.read_bytes()
    assert spans is not None
    return [data[offset : offset + size] for offset, size in spans]


def test_progress_ends_with_all_bytes(tree: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    packed = pack(tree, tmp_path / "a", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (packed.tree.size_bytes, packed.tree.size_bytes)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: os.mkfifo(t / "fifo"), "neither file, directory nor symlink"),
        (lambda t: (t / "bin/run").chmod(0o4755), "set-id"),
        (lambda t: (t / "out").symlink_to("/etc/passwd"), "absolute"),
        (lambda t: (t / "out").symlink_to("../x"), "leaves the tree"),
    ],
)
def test_a_tree_that_unpackers_would_refuse_is_not_packed(
    tree: Path, tmp_path: Path, spoil: object, said: str
) -> None:
    spoil(tree)  # type: ignore[operator]
    with pytest.raises(PublishError, match=said):
        pack(tree, tmp_path / "a")


def test_a_file_that_changes_meanwhile_is_noticed(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scan_then_change(tree: Path) -> tuple[manifest.ManifestEntry, ...]:
        entries = manifest.scan(tree)
        (tree / "lib/data").write_bytes(os.urandom(50_000))
        return entries

    monkeypatch.setattr(packing, "checked", scan_then_change)
    with pytest.raises(PublishError, match="changed"):
        pack(tree, tmp_path / "a")


_name = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in {".", ".."} and len(name.encode()) <= 255
)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.lists(_name, min_size=1, max_size=3).map(tuple), st.binary(max_size=9000), max_size=6))
def test_any_tree_survives_the_round_trip(files: dict[tuple[str, ...], bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        (tree := Path(name) / "tree").mkdir()
        for parts, data in files.items():
            target = tree.joinpath(*parts)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            except OSError:  # a name that is a file here and a directory there
                continue
        packed = pack(tree, Path(name) / "a")
        entries = unpack(Path(name) / "a", package_of(packed), Path(name) / "out")
        assert tuple(entries) == packed.entries
        shutil.rmtree(tree)
