"""The shared cache against crowds, liars, other versions of itself and roots that are none."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobagent.errors import DiskFull, SiteError, TrustError
from jobagent.events import Events
from jobagent.model import Blob, Tree
from jobagent.testing.cache_users import content
from jobagent.testing.samples import FILES, Sample, holder, sample
from jobagent_sharedcache import SharedCache, SharedCacheSettings
from jobagent_sharedcache.room import need_of
from jobagent_sharedcache.settings import KeepArchives, Protection

WAIT_S = 60.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opened(root: Path, **settings: object) -> SharedCache:
    return SharedCache(SharedCacheSettings(**settings), Events(), root=root)  # type: ignore[arg-type]


def install(cache: SharedCache, wanted: Sample) -> Sample:
    """Install and let go."""
    cache.release(cache.acquire(wanted.package, holder(), wanted))
    return wanted


# --- crowds


@pytest.mark.acceptance(7, 21)
def test_a_crowd_that_finds_a_package_damaged_does_not_keep_its_repairer_out(root: Path, tmp_path: Path) -> None:
    """Each looks at all files under a shared lock, longer than it then sleeps: somebody looks at every instant."""
    files = {f"lib/{n}": bytes([n % 250]) * 10 for n in range(2000)}
    wanted = sample(files=files, log=tmp_path / "log")
    settings = {"protection": Protection.MANIFEST, "share_files": False}
    victim = opened(root, **settings).final_tree(install(opened(root, **settings), wanted).package) / "lib/7"
    victim.chmod(0o644)
    victim.write_bytes(b"spoilt")
    start = threading.Barrier(24)

    def job(_: int) -> None:
        cache = opened(root, **settings)
        start.wait(WAIT_S)
        cache.release(cache.acquire(wanted.package, holder(), wanted))

    pool = ThreadPoolExecutor(24)
    done = [pool.submit(job, n) for n in range(24)]
    for each in done:
        each.result(WAIT_S)
    pool.shutdown()
    assert wanted.builds() == 2
    assert victim.read_bytes() == files["lib/7"]


# --- liars


def lying(wanted: Sample, namespace: str) -> Sample:
    """Another VO's entry for the same archive, of another form and with another tree."""
    package = wanted.package
    signed = replace(
        package,
        id=replace(package.id, namespace=namespace),
        archive=replace(package.archive, format="alibuild"),
        tree=Tree(Blob("f" * 64, 10), package.tree.size_bytes, package.tree.file_count),
    )
    return Sample(signed, {**wanted.files, "bin/program": b"#!/bin/sh\necho taken over\n"}, wanted.log)


@pytest.mark.acceptance(15)
def test_no_vo_gets_the_tree_that_another_one_says_its_archive_makes(root: Path, tmp_path: Path) -> None:
    honest = sample(namespace="bob", log=tmp_path / "log")
    liar = lying(honest, "alice")
    cache = opened(root)
    install(cache, liar)
    lease = cache.acquire(honest.package, holder(), honest)
    assert not lease.installed.is_cache_hit and content(lease.installed.tree) == dict(FILES)
    with pytest.raises(TrustError, match=r"VO_ALICE@Alpha::1\.0 signs another tree for the archive of VO_BOB@Alpha"):
        cache.acquire(liar.package, holder(), liar)
    assert content(lease.installed.tree) == dict(FILES)
    cache.release(lease)
    assert cache.acquire(honest.package, holder(), honest).installed.is_cache_hit


def test_what_two_vos_save_by_having_the_same_package_is_told(root: Path) -> None:
    cache = opened(root)
    install(cache, sample("Alpha", namespace="alice"))
    before = cache.usage()
    install(cache, sample("Beta", namespace="bob"))
    after = cache.usage()
    assert (after.stored_bytes, after.used_bytes) == (before.stored_bytes, before.used_bytes)
    assert after.saved_bytes == before.saved_bytes + before.logical_bytes


def of_vo(namespace: str, name: str, size_bytes: int = 1 << 20) -> Sample:
    return sample(name, namespace=namespace, files={"data": (name.encode() * size_bytes)[:size_bytes]})


@pytest.mark.acceptance(8)
def test_a_vo_that_fills_its_share_pushes_out_its_own_and_nothing_of_another(root: Path) -> None:
    bobs = [of_vo("bob", f"Bob{n}") for n in range(2)]
    room = need_of(bobs[0].package).bytes
    cache = opened(root, quota_bytes=6 * room, quota_share=0.5)
    for wanted in bobs:  # used before all that comes now, so the first to go if VOs were not kept apart
        install(cache, wanted)
    alices = [install(cache, of_vo("alice", f"Alice{n}")) for n in range(8)]
    left = {entry.package_id for entry in cache.entries()}
    assert {str(wanted.package.id) for wanted in (*bobs, alices[-1])} <= left
    assert 1 <= sum(name.startswith("VO_ALICE") for name in left) <= 3
    with pytest.raises(DiskFull, match=r"the share of VO alice is \d+ bytes, \d+ were taken"):
        install(cache, of_vo("alice", "Huge", 4 << 20))
    assert {entry.package_id for entry in cache.entries()} >= {str(wanted.package.id) for wanted in bobs}


def test_what_two_vos_have_is_a_part_of_both_shares_and_goes_for_neither(root: Path) -> None:
    shared, same = of_vo("alice", "Tool"), of_vo("bob", "Tool")
    cache = opened(root, quota_bytes=4 * need_of(shared.package).bytes, quota_share=0.5)
    install(cache, shared)
    install(cache, same)
    for n in range(4):
        install(cache, of_vo("alice", f"Alice{n}"))
    assert {"VO_ALICE@Tool::1.0", "VO_BOB@Tool::1.0"} <= {entry.package_id for entry in cache.entries()}


# --- crashes between two things that belong together


@pytest.mark.acceptance(4)
@pytest.mark.parametrize("case", ["archive without a note of it", "note of an archive that is gone"])
def test_archive_and_record_agree_again_after_a_crash_between_them(root: Path, case: str) -> None:
    policy = KeepArchives.NEVER if case.startswith("archive") else KeepArchives.ALWAYS
    cache = opened(root, keep_archives=policy)
    archive = root / "archives" / install(cache, sample()).package.key
    if policy is KeepArchives.NEVER:
        archive.write_bytes(b"its agent was killed before it removed this")
    else:
        archive.unlink()
    later = opened(root, keep_archives=policy)
    later.sweep()
    assert not archive.exists()
    assert [e.is_seedable for e in later.entries()] == [False]
    assert later.usage().archive_bytes == 0


# --- other versions of the agent


KEY = "c5caa899ef872b6c6f5f03292f9b1e8fbd1dcba8dbce5f6803249fabd3303028"
OF_AN_EARLIER_AGENT = {
    "FORMAT": '{"format": 1}',
    "books.json": '{"stored_bytes": 8192, "stored_files": 2, "boot": "2b06ada9", "of a later agent": 1}',
    f"packages/{KEY}/manifest": (
        '{"k":"d","p":"bin"}\n'
        '{"h":"cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4","k":"f","m":"755","p":"bin/tool","s":3}\n'
        '{"k":"d","p":"lib"}\n'
        '{"h":"3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7","k":"f","m":"644","p":"lib/data","s":4}\n'
    ),
    f"packages/{KEY}/record.json": json.dumps(
        {
            "package": {
                "path": "test/b1a9/Alpha/1.0/Linux-x86_64",
                "size": 2048,
                "sha256": KEY,
                "custom": {
                    "format": 1,
                    "file": "Alpha-1.0.tar.zst",
                    "archive": "tar.zst",
                    "btmh": KEY,
                    "btih": KEY[:40],
                    "manifest": {
                        "sha256": "df6ce28318a668b2072ddc20fb99920bd0c56d48028d1b915420f9a8206c5219",
                        "bytes": 45,
                    },
                    "unpacked": {"bytes": 7, "files": 2},
                    "published": 1700000000,
                    "state": "released",
                },
            },
            "has_archive": False,
            "tree_bytes": 8192,
            "outside_bytes": 0,
            "members": 8,
            "stored_files": 2,
            "installed_s": 1795634932.0,
            "of a later agent": True,
        }
    ),
    f"packages/{KEY}/stamp.json": '{"boot": "2b06ada9-ec2b-4cf3-86f5-1221a7252903", "fingerprint": "cf22"}',
    f"packages/{KEY}/used": "",
    f"packages/{KEY}/tree/bin/tool": "old",
    f"packages/{KEY}/tree/lib/data": "data",
}


def write_as_an_earlier_agent(root: Path) -> None:
    """Make a cache of format 1 from what is written above, and nothing that this agent could have made."""
    for name in ("locks", "archives", "staging", "leases", "sessions", "reservations", "progress", "pins"):
        (root / name).mkdir(parents=True)
    for name in ("quarantine", "trash", "state"):
        (root / name).mkdir()
    for name, text in OF_AN_EARLIER_AGENT.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    tree = root / "packages" / KEY / "tree"
    (tree / "bin/tool").chmod(0o555)
    (tree / "lib/data").chmod(0o444)
    for stored, path in (
        ("store/3a/3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7.r", tree / "lib/data"),
        ("store/cb/cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4.x", tree / "bin/tool"),
    ):
        (root / stored).parent.mkdir(parents=True)
        (root / stored).hardlink_to(path)


def test_a_cache_of_format_1_is_used_as_it_is_by_every_later_agent(root: Path, tmp_path: Path) -> None:
    write_as_an_earlier_agent(root)
    wanted = sample(files={"bin/tool": b"old", "lib/data": b"data"}, log=tmp_path / "log")
    assert wanted.package.key == KEY
    cache = opened(root)
    assert [(e.package_id, e.leases) for e in cache.entries()] == [("VO_TEST@Alpha::1.0", 0)]
    lease = cache.acquire(wanted.package, holder(), wanted)
    assert lease.installed.is_cache_hit and wanted.builds() == 0
    assert content(lease.installed.tree) == {"bin/tool": b"old", "lib/data": b"data"}
    assert (cache.usage().stored_bytes, cache.usage().inodes) == (8192, 2 + 6 + 1)


def test_a_lease_of_a_later_agent_keeps_its_package_from_an_earlier_one(root: Path) -> None:
    wanted = sample()
    cache = opened(root)
    lease = cache.acquire(wanted.package, holder(), wanted)
    record = root / "leases" / wanted.package.key / lease.id
    record.write_text(json.dumps(json.loads(record.read_text()) | {"cgroup": "/of/a/later/agent"}))
    assert not opened(root).evict(wanted.package.key)
    assert cache.sweep() == 0 and record.exists()


# --- roots that are none


def test_a_directory_of_something_else_is_refused_and_left_as_it_is(root: Path) -> None:
    root.mkdir(mode=0o700)
    (root / "thesis.tex").write_text("\\documentclass")
    with pytest.raises(SiteError, match=r"no cache: it has thesis\.tex"):
        opened(root)
    assert [p.name for p in root.iterdir()] == ["thesis.tex"] and root.stat().st_mode & 0o777 == 0o700


def test_a_new_disk_and_a_root_whose_first_agent_was_killed_are_taken(root: Path) -> None:
    for name in ("lost+found", "locks", "packages"):
        (root / name).mkdir(parents=True)
    (root / ".FORMAT.x1y2z3.tmp").write_text("{")
    install(opened(root), sample())
    assert json.loads((root / "FORMAT").read_text()) == {"format": 1}
