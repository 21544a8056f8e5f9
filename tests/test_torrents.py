"""Torrents: reproducible, exactly what BEP 3 and BEP 52 say, and refused or made safe when hostile."""

from __future__ import annotations

import random
import time
from pathlib import Path

import libtorrent as lt
import pytest

from jobagent import bencode
from jobagent.central.packaging import torrents
from jobagent.cli import main
from jobagent.errors import HostileArchive, JobError

MATERIAL = Path(__file__).parents[2] / "shared" / "material" / "torrents"


def archive(directory: Path, size_bytes: int, seed: int = 1) -> Path:
    path = directory / "A-1.tar.zst"
    path.write_bytes(random.Random(seed).randbytes(size_bytes))
    return path


@pytest.mark.parametrize("size_bytes", [1, 16384, 16385, 40_000, 16_384_000, 16_384_001, 33_000_001])
def test_torrent_equals_what_libtorrent_would_make(tmp_path: Path, size_bytes: int) -> None:
    path = archive(tmp_path, size_bytes)
    ours = torrents.create(path, path.name)
    theirs = lt.create_torrent(lt.list_files(str(path)), ours.piece_size)
    lt.set_piece_hashes(theirs, str(tmp_path))
    generated = theirs.generate()
    decoded = lt.bdecode(ours.data)
    assert decoded[b"info"] == generated[b"info"]
    assert decoded[b"piece layers"] == generated.get(b"piece layers", {})
    hashes = lt.load_torrent_buffer(ours.data).ti.info_hashes()
    assert (str(hashes.v1), str(hashes.v2)) == (ours.infohash_v1, ours.infohash_v2)


def test_torrent_is_reproducible_whatever_the_path_and_times_of_the_file(tmp_path: Path) -> None:
    first = torrents.create(archive(tmp_path, 100_000), "Name.tar.zst")
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert torrents.create(archive(other, 100_000), "Name.tar.zst") == first


@pytest.mark.parametrize("size_bytes", [25_000_000, 214_000_000, 300_000_000, 10_000_000_000])
def test_packages_have_between_400_and_1000_pieces(size_bytes: int) -> None:
    assert 400 <= size_bytes / torrents.piece_size_for(size_bytes) <= 1000


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\0b", "a\nb", "x" * 256])
def test_a_name_that_is_not_a_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(JobError, match="plain file name"):
        torrents.create(archive(tmp_path, 10), name)


def test_an_empty_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="empty"):
        torrents.create(archive(tmp_path, 0), "a")


def test_check_returns_what_create_made(tmp_path: Path) -> None:
    made = torrents.create(archive(tmp_path, 1_000_000), "Name.tar.zst")
    summary = torrents.check(made.data)
    assert (summary.file_name, summary.size_bytes, summary.piece_size) == ("Name.tar.zst", 1_000_000, 32768)
    assert (summary.infohash_v1, summary.infohash_v2) == (made.infohash_v1, made.infohash_v2)
    assert summary.ignored == ()


def test_trackers_and_web_seeds_inside_a_torrent_are_reported_as_ignored(tmp_path: Path) -> None:
    top = bencode.decode(torrents.create(archive(tmp_path, 1000), "a").data)
    assert isinstance(top, dict)
    hostile = bencode.encode({**top, b"announce": b"http://169.254.169.254/", b"url-list": b"http://evil/"})
    assert torrents.check(hostile).ignored == ("announce", "url-list")


def test_torrent_for_old_clients_is_what_libtorrent_would_make_for_v1_alone(tmp_path: Path) -> None:
    path = archive(tmp_path, 100_000)
    old = torrents.legacy(torrents.create(path, path.name).data, "http://tracker/announce")
    theirs = lt.create_torrent(lt.list_files(str(path)), old.piece_size, lt.create_torrent.v1_only)
    lt.set_piece_hashes(theirs, str(tmp_path))
    assert lt.bdecode(old.data) == {b"announce": b"http://tracker/announce", b"info": theirs.generate()[b"info"]}
    assert torrents.check(old.data).infohash_v1 == old.infohash_v1 and old.infohash_v2 == ""


def changed(made: torrents.Torrent, **info: bencode.Value | None) -> bytes:
    top = bencode.decode(made.data)
    assert isinstance(top, dict)
    old = top[b"info"]
    assert isinstance(old, dict)
    for key, value in info.items():
        name = key.replace("_", " ").encode()
        if value is None:
            old.pop(name, None)
        else:
            old[name] = value
    return bencode.encode(top)


HOSTILE: dict[str, tuple[dict[str, bencode.Value | None], str]] = {
    "a name with a traversal": ({"name": b"../../etc/passwd"}, "plain file name"),
    "a name that differs from the file tree": ({"name": b"other"}, "differs from its name"),
    "a directory": ({"files": [{b"length": 1, b"path": [b"a"]}]}, "directory"),
    "a symlink": ({"attr": b"l", "symlink_path": [b"etc", b"passwd"]}, "symlink"),
    "two sizes": ({"length": 100_001}, "two sizes"),
    "no v1 hashes": ({"pieces": b""}, "v1 piece hashes"),
    "too large pieces": ({"piece_length": 1 << 40}, "piece length"),
    "no v2 tree": ({"file_tree": None}, "file tree"),
    "two files in the tree": ({"file_tree": {b"a": {}, b"b": {}}}, "file tree"),
    "an unknown version": ({"meta_version": 3}, "meta version"),
    "a terabyte in tiny pieces": (
        {"length": 10**12, "file_tree": {b"a": {b"": {b"length": 10**12, b"pieces root": b"x" * 32}}}},
        "more than 100000 pieces",
    ),
}


@pytest.mark.acceptance(26)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_torrent_is_refused_with_its_reason(tmp_path: Path, case: str) -> None:
    info, reason = HOSTILE[case]
    with pytest.raises(HostileArchive, match=reason):
        torrents.check(changed(torrents.create(archive(tmp_path, 100_000), "a"), **info))


def test_a_forged_piece_layer_is_refused(tmp_path: Path) -> None:
    data = bytearray(torrents.create(archive(tmp_path, 100_000), "a").data)
    data[-10] ^= 1
    with pytest.raises(HostileArchive, match="root hash"):
        torrents.check(bytes(data))


@pytest.mark.parametrize(
    "data",
    [b"", b"d", b"l" * 100_000, b"d" + b"1:a" * 99, b"i-0e", b"i01e", b"01:a", b"9999999999:a", b"d1:b0:1:a0:e"],
)
def test_malformed_bencoding_is_refused(data: bytes) -> None:
    with pytest.raises(HostileArchive):
        torrents.check(data)


needs_material = pytest.mark.skipif(not MATERIAL.is_dir(), reason=f"outside test data absent: {MATERIAL}")


@pytest.mark.acceptance(26)
@needs_material
def test_every_outside_torrent_is_refused_or_made_safe_quickly() -> None:
    files = sorted(MATERIAL.rglob("*.torrent"))
    assert len(files) > 60
    accepted = {}
    start = time.monotonic()
    for path in files:
        try:
            accepted[path.name] = torrents.check(path.read_bytes())
        except HostileArchive:
            continue
    assert time.monotonic() - start < 5
    assert {"alice.torrent", "bunny.torrent", "leaves.torrent", "v2.torrent"} <= accepted.keys()
    for name, summary in accepted.items():
        assert "/" not in summary.file_name and summary.file_name not in {"", ".", ".."}, name
        hashes = lt.load_torrent_buffer(next(MATERIAL.rglob(name)).read_bytes()).ti.info_hashes()
        assert summary.infohash_v1 == (str(hashes.v1) if hashes.has_v1() else "")
        assert summary.infohash_v2 == (str(hashes.v2) if hashes.has_v2() else "")


@needs_material
def test_whatever_libtorrent_refuses_is_refused() -> None:
    for path in MATERIAL.rglob("*.torrent"):
        try:
            lt.load_torrent_buffer(path.read_bytes())
        except RuntimeError:
            with pytest.raises(HostileArchive):
                torrents.check(path.read_bytes())


def test_command_line_refuses_one_file_and_accepts_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.torrent", tmp_path / "bad.torrent"
    good.write_bytes(torrents.create(archive(tmp_path, 1000), "a").data)
    bad.write_bytes(b"nonsense")
    assert main.main(["torrent", "check", str(good), str(bad)]) == HostileArchive.exit_code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("accepted") and "refused: torrent is malformed" in lines[1]
    assert main.main(["torrent", "show", str(good)]) == 0
    assert "infohash v2" in capsys.readouterr().out
