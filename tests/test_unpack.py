"""Archives become trees; hostile ones become one error and nothing outside their directory."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import lzma
import os
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jobagent import manifest
from jobagent.central.packaging.pack import FRAME_BYTES, pack
from jobagent.errors import DiskFull, HostileArchive, TrustError
from jobagent_archives import tar, unpacking
from tests.conftest import need
from tests.packages import package_of, signed, unpack

MIB = 1 << 20
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "tar.zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "tar.gz": gzip.compress,
    "tar.xz": lzma.compress,
}


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar_of(*members: tuple[tarfile.TarInfo, bytes], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def header(
    name: bytes = b"a", size: bytes = b"00000000000\0", kind: bytes = b"0", mode: bytes = b"0000644\0"
) -> bytes:
    """One raw header with a right checksum, whatever the fields say."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = mode
    block[124:136] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)
OK = member("ok", b"fine")


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """The directory around the target of unpacking; the test fails where anything else in it changes."""
    (tmp_path / "victim").write_text("precious")
    yield tmp_path
    assert {p.name for p in tmp_path.iterdir()} <= {"victim", "archive", "out"}
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "victim").stat().st_nlink == 1


def unpack_bytes(data: bytes, outside: Path, archive_format: str = "tar.zst", *, size: int = MIB, count: int = 50):
    (outside / "archive").write_bytes(data)
    return unpack(outside / "archive", signed(size, count, archive_format), outside / "out")


@pytest.mark.parametrize("archive_format", COMPRESSORS)
@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_formats_of_others_are_read(outside: Path, archive_format: str, tar_format: int) -> None:
    long = "d/" * 40 + "n" * 30 if tar_format == tarfile.USTAR_FORMAT else "d/" * 40 + "n" * 130
    data = tar_of(
        member("./d", type=tarfile.DIRTYPE, mode=0o700),
        member("./d/run", b"#!/bin/sh\n", mode=0o711, mtime=1234567, uid=77, uname="somebody"),
        member(long, b"x" * 513),
        symlink("link", "d/run"),
        hardlink("again", "./d/run"),
        tar_format=tar_format,
    )
    entries = unpack_bytes(COMPRESSORS[archive_format](data), outside, archive_format)
    assert manifest.difference(entries, outside / "out") == ""
    assert (outside / "out/link").read_bytes() == b"#!/bin/sh\n" == (outside / "out/again").read_bytes()
    assert (outside / "out" / long).read_bytes() == b"x" * 513
    assert (outside / "out/d/run").stat().st_mode & 0o7777 == 0o755
    assert (outside / "out/d").stat().st_mode & 0o7777 == 0o755


def test_modes_do_not_depend_on_the_umask(outside: Path) -> None:
    previous = os.umask(0o077)
    try:
        unpack_bytes(COMPRESSORS["tar.zst"](tar_of(member("d/e/run", b"x", mode=0o755), OK)), outside)
    finally:
        os.umask(previous)
    assert [(outside / "out" / p).stat().st_mode & 0o777 for p in ("d", "d/e", "d/e/run", "ok")] == [
        *[0o755] * 3,
        0o644,
    ]


def test_gnu_tar_writes_what_is_read(outside: Path) -> None:
    program = need("tar")
    source = outside / "out-source"
    (source / ("d" * 150)).mkdir(parents=True)
    (source / ("d" * 150) / "file").write_bytes(os.urandom(30_000))
    (source / "link").symlink_to("d" * 150)
    (outside / "archive").write_bytes(
        subprocess.run(
            [program, "-czf", "-", "-C", source, "."], check=True, timeout=60, stdout=subprocess.PIPE
        ).stdout
    )
    entries = unpack(outside / "archive", signed(MIB, 50, "tar.gz"), outside / "out")
    assert tuple(entries) == manifest.scan(source)
    subprocess.run(["rm", "-r", source], check=True, timeout=60)


def test_data_packages_are_a_directory_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"events")
    entries = unpack(tmp_path / "archive", signed(6, 1, "file"), tmp_path / "out")
    assert (tmp_path / "out/a").read_bytes() == b"events"
    assert manifest.difference(entries, tmp_path / "out") == ""
    assert entries[0].sha256 == hashlib.sha256(b"events").hexdigest()


def sparse() -> bytes:
    info = member("s")[0]
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999999"}
    return tar_of((info, b""))


def with_pax(**headers: str) -> bytes:
    info, data = member("p", b"1234")
    info.pax_headers = headers
    return tar_of((info, data))


def pax_raw(data: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", b"%011o\0" % len(data), kind) + data + bytes(-len(data) % 512) + tar_of(OK)


HOSTILE: dict[str, bytes] = {
    "absolute name": tar_of(member("/etc/owned", b"x")),
    "parent in name": tar_of(member("../victim", b"x")),
    "parent within name": tar_of(member("a/../../victim", b"x")),
    "parent in pax name": with_pax(path="../victim"),
    "NUL in pax name": with_pax(path="a\0b"),
    "empty name": tar_of(member("", b"x")),
    "name too long": tar_of(member("n" * 256, b"x")),
    "path too long": tar_of(member("n/" * 2000 + "x", b"x")),
    "file named dot": tar_of(member(".", b"x")),
    "absolute symlink": tar_of(symlink("l", "/etc/passwd")),
    "symlink out": tar_of(symlink("l", "../victim")),
    "symlink out by way of another": tar_of(
        member("d/e/f", b"x"), symlink("d/e/up", ".."), symlink("l", "d/e/up/../../victim")
    ),
    "file through symlink": tar_of(symlink("l", ".."), member("l/victim", b"x")),
    "file through symlink to directory": tar_of(
        member("d", type=tarfile.DIRTYPE), symlink("l", "d"), member("l/f", b"x")
    ),
    "file replaces symlink": tar_of(symlink("l", "../victim"), member("l", b"x")),
    "symlink replaces directory": tar_of(member("d/f", b"x"), symlink("d", ".."), member("d/victim", b"x")),
    "directory replaces symlink": tar_of(symlink("l", ".."), member("l", type=tarfile.DIRTYPE)),
    "symlink loop": tar_of(symlink("a", "b"), symlink("b", "a")),
    "long realpath chain": tar_of(
        *(symlink("a" * 200 + str(n), "b" * 200 + "/..") for n in range(20)),
        symlink("l", ("a" * 200 + "0/") * 15 + "../.."),
    ),
    "hard link out": tar_of(hardlink("h", "../victim")),
    "absolute hard link": tar_of(hardlink("h", "/etc/passwd")),
    "hard link to symlink": tar_of(symlink("l", "x"), hardlink("h", "l")),
    "hard link to directory": tar_of(member("d", type=tarfile.DIRTYPE), hardlink("h", "d")),
    "hard link to a later file": tar_of(hardlink("h", "f"), member("f", b"x")),
    "hard link with data": tar_of(OK)[:1024] + header(b"h", b"00000001000\0", b"1") + bytes(512) + END,
    "character device": tar_of(member("c", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "block device": tar_of(member("b", type=tarfile.BLKTYPE, devmajor=8)),
    "FIFO": tar_of(member("f", type=tarfile.FIFOTYPE)),
    "contiguous file": tar_of(member("f", type=tarfile.CONTTYPE)),
    "unknown type": header(kind=b"Z") + END,
    "set-uid": tar_of(member("f", b"x", mode=0o4755)),
    "set-gid directory": tar_of(member("d", type=tarfile.DIRTYPE, mode=0o2755)),
    "file twice": tar_of(OK, OK),
    "file is a directory": tar_of(OK, member("ok", type=tarfile.DIRTYPE)),
    "file in a file": tar_of(OK, member("ok/f", b"x")),
    "sparse file": sparse(),
    "GNU sparse file": header(kind=b"S") + END,
    "huge pax header": with_pax(comment="x" * 200_000),
    "pax size of another": with_pax(size="99999999"),
    "negative pax size": with_pax(size="-4"),
    "pax record without end": pax_raw(b"99 path=x\n"),
    "pax record of no length": pax_raw(b"0 path=x\n"),
    "pax record with a huge length": pax_raw(b"9" * 5000 + b" path=x\n"),
    "pax record that is not one": pax_raw(b"\xff" * 100),
    "global header that renames": pax_raw(b"18 path=../victim\n", b"g"),
    "many extended headers": (header(b"L", b"00000000001\0", b"L") + b"x" + bytes(511)) * 40 + tar_of(OK),
    "long name of 8 GiB": header(b"L", b"77777777777\0", b"L") + END,
    "negative size": header(size=b"\xff" * 12) + END,
    "size of 2^80": header(size=b"\x80\x00" + b"\xff" * 10) + END,
    "octal that is not": header(size=b"0000000009z\0") + END,
    "bad checksum": header()[:148] + b"000000\0 " + header()[156:] + END,
    "no magic": header()[:257] + bytes(8) + header()[265:] + END,
    "truncated header": tar_of(OK)[:300],
    "truncated data": tar_of(member("f", b"x" * 5000))[:2048],
    "no end": tar_of(OK)[:1024],
    "nothing": b"",
    "noise": bytes(range(256)) * 8,
    "data after the end": tar_of(OK) + b"\0" * 512 + b"more",
    "another tar after the end": tar_of(OK) + tar_of(member("second", b"x")),
}  # fmt: skip


@pytest.mark.acceptance(24)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_and_touches_nothing_outside(outside: Path, name: str) -> None:
    with pytest.raises(HostileArchive) as caught:
        unpack_bytes(COMPRESSORS["tar.zst"](HOSTILE[name]), outside)
    assert "\n" not in str(caught.value)


@pytest.mark.acceptance(24)
@pytest.mark.parametrize("archive_format", COMPRESSORS)
@pytest.mark.parametrize("damage", ["cut in half", "byte flipped", "garbage behind", "not compressed", "empty"])
def test_damaged_compression_is_refused(outside: Path, archive_format: str, damage: str) -> None:
    good = COMPRESSORS[archive_format](tar_of(member("f", os.urandom(300_000))))
    data = {
        "cut in half": good[: len(good) // 2],
        "byte flipped": good[:5] + bytes([good[5] ^ 0xFF]) + good[6:200] + bytes([good[200] ^ 0xFF]) + good[201:],
        "garbage behind": good + b"garbage " * 20,
        "not compressed": tar_of(OK),
        "empty": b"",
    }[damage]
    with pytest.raises(HostileArchive):
        unpack_bytes(data, outside, archive_format)


def zeros(size_bytes: int) -> Iterator[bytes]:
    while size_bytes > 0:
        yield bytes(min(MIB, size_bytes))
        size_bytes -= MIB


def bomb(archive_format: str, size_bytes: int) -> bytes:
    """A file of zeros, compressed without holding it in memory."""
    compressor = zstandard.ZstdCompressor().compressobj() if archive_format == "tar.zst" else None
    packed = compressor or (lzma.LZMACompressor(preset=0) if archive_format == "tar.xz" else None)
    if packed is None:
        stream = io.BytesIO()
        with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as out:
            out.write(header(b"bomb", b"%011o\0" % size_bytes))
            for block in zeros(size_bytes):
                out.write(block)
        return stream.getvalue()
    parts = [packed.compress(header(b"bomb", b"%011o\0" % size_bytes))]
    parts += [packed.compress(block) for block in zeros(size_bytes)]
    return b"".join([*parts, packed.flush()])


@pytest.mark.acceptance(25)
@pytest.mark.parametrize("archive_format", COMPRESSORS)
def test_bomb_stops_at_the_signed_size(outside: Path, archive_format: str) -> None:
    with pytest.raises(HostileArchive, match=r"more than (was|the 1000 bytes that were) signed"):
        unpack_bytes(bomb(archive_format, 400 * MIB), outside, archive_format, size=1000)
    assert sum(p.stat().st_size for p in (outside / "out").rglob("*")) <= 1000


@pytest.mark.acceptance(25)
def test_bomb_behind_the_end_or_in_padding_stops(outside: Path) -> None:
    blocks = [tar_of(OK), *zeros(400 * MIB)]
    with pytest.raises(HostileArchive, match=r"unpacks to more|after its end"):
        unpack_bytes(zstandard.ZstdCompressor().compress(b"".join(blocks)), outside, size=1000)


@pytest.mark.acceptance(25)
def test_frames_that_claim_gigabytes_are_not_believed(outside: Path) -> None:
    # Frame header of RFC 8878 with a content size of 2^40 bytes, then one RLE block.
    claim = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + (1 << 40).to_bytes(8, "little") + b"\x03\x00\x10\x00"
    with pytest.raises(HostileArchive):
        unpack_bytes(claim * 3, outside)


@pytest.mark.acceptance(25)
@pytest.mark.parametrize("filler", [b"\x50\x2a\x4d\x18\0\0\0\0", zstandard.ZstdCompressor().compress(b"")])
def test_millions_of_empty_frames_cost_little(outside: Path, filler: bytes) -> None:
    data = filler * (8 * MIB // len(filler)) + COMPRESSORS["tar.zst"](tar_of(OK)) + filler
    start = time.monotonic()
    assert [e.path for e in unpack_bytes(data, outside)] == ["ok"]
    assert time.monotonic() - start < 20


@pytest.mark.acceptance(25)
def test_a_million_tiny_files_stop_at_the_signed_count(outside: Path) -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    one = b"".join(header(b"f%06d" % n) for n in range(2000))
    data = b"".join(
        [compressor.compress(one)] + [compressor.compress(one) for _ in range(500)] + [compressor.flush()]
    )
    with pytest.raises(HostileArchive, match="more than the 1000 members"):
        unpack_bytes(data, outside, count=1000)
    assert sum(1 for _ in (outside / "out").iterdir()) <= 1000


@pytest.mark.acceptance(25)
def test_implied_directories_count_as_members(outside: Path) -> None:
    with pytest.raises(HostileArchive, match="more than the 100 members"):
        unpack_bytes(COMPRESSORS["tar.zst"](tar_of(member("d/" * 1000 + "f"))), outside, count=100)


@pytest.mark.acceptance(25)
def test_hard_links_count_with_the_bytes_of_their_file(outside: Path) -> None:
    data = tar_of(member("f", b"x" * 1000), *(hardlink(f"h{n}", "f") for n in range(40)))
    with pytest.raises(HostileArchive, match="bytes that were signed"):
        unpack_bytes(COMPRESSORS["tar.zst"](data), outside, size=20_000)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.builds(
            lambda name, kind, target, data: member(
                name, data if kind == tarfile.REGTYPE else b"", type=kind, linkname=target
            ),
            st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), min_size=1, max_size=4).map("/".join),
            st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
            st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), min_size=1, max_size=4).map("/".join),
            st.binary(max_size=600),
        ),
        max_size=6,
    )
)
def test_whatever_members_say_nothing_leaves_the_tree(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name).resolve()
        (outer / "victim").write_text("precious")
        try:
            entries = unpack_bytes(COMPRESSORS["tar.zst"](tar_of(*members)), outer)
        except TrustError:
            pass
        else:
            assert manifest.difference(entries, outer / "out") == ""
        assert {p.name for p in outer.iterdir()} == {"victim", "archive", "out"}
        assert (outer / "victim").stat().st_nlink == 1
        for path in (outer / "out").rglob("*"):
            assert path.resolve().is_relative_to(outer / "out")


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_mutated_archives_are_refused_or_harmless(data: st.DataObject) -> None:
    raw = bytearray(tar_of(member("d/f", b"x" * 700), symlink("l", "d/f"), hardlink("h", "d/f")))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    source = tar.Source(iter([bytes(raw)]), MIB)
    try:
        for found in tar.members(source):
            for _ in source.pieces(found.size_bytes):
                pass
            source.read(tar.padding(found.size_bytes))
    except TrustError:
        pass


@pytest.mark.acceptance(2)
def test_full_disk_while_unpacking_is_named(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(unpacking.os, "write", full)
    with pytest.raises(DiskFull, match=r"1 MB and 50 files: No space left on device \(\d+ MB and \d+ inodes left\)"):
        unpack_bytes(COMPRESSORS["tar.zst"](tar_of(OK)), outside)


@pytest.mark.acceptance(2)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("options", ["size=8m", "nr_inodes=20"])
def test_a_disk_that_fills_while_unpacking_is_an_error_and_not_a_half_tree(tmp_path: Path, options: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for n in range(30):
        (tree / f"f{n}").write_bytes(os.urandom(400_000))
    (tree / "large").write_bytes(os.urandom(5 * MIB))
    packed = pack(tree, tmp_path / "archive", level=1)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True, timeout=30)
    try:
        with pytest.raises(DiskFull):
            unpack(tmp_path / "archive", package_of(packed), disk / "out")
    finally:
        subprocess.run(["umount", disk], check=True, timeout=30)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same_tree(tmp_path: Path, workers: int) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(FRAME_BYTES * 2 + 12345))
    for n in range(300):
        (tree / f"f{n:03}").write_bytes(os.urandom(n * 37))
    packed = pack(tree, tmp_path / "archive", level=1)
    entries = unpack(tmp_path / "archive", package_of(packed), tmp_path / "out", workers)
    assert tuple(entries) == packed.entries == manifest.scan(tmp_path / "out")


def test_no_thread_or_descriptor_outlives_a_refusal(outside: Path) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostileArchive):
        unpack_bytes(COMPRESSORS["tar.zst"](HOSTILE["another tar after the end"]), outside)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_bomb_is_refused_quickly(outside: Path) -> None:
    data = bomb("tar.zst", 1000 * MIB)
    start = time.monotonic()
    with pytest.raises(HostileArchive):
        unpack_bytes(data, outside, size=1000)
    assert time.monotonic() - start < 5
