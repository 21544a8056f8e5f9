"""The canonical form of manifests, and their comparison with trees."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent import manifest
from jobagent.contracts import ManifestEntry
from jobagent.errors import HostileArchive, TrustError

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def _is_encodable(path: str) -> bool:
    try:
        return all(len(part) < 255 for part in os.fsencode(path).split(b"/"))
    except UnicodeEncodeError:
        return False


_segment = st.text(min_size=1, max_size=20).filter(lambda s: "/" not in s and "\0" not in s and s not in {".", ".."})
_path = st.lists(_segment, min_size=1, max_size=4).map("/".join).filter(_is_encodable)
_digest = st.binary(max_size=4).map(lambda b: hashlib.sha256(b).hexdigest())
_entry = st.one_of(
    st.builds(ManifestEntry, _path, st.just("f"), st.sampled_from([0o644, 0o755]), st.integers(0, 2**50), _digest),
    st.builds(ManifestEntry, _path, st.just("d"), st.just(0o755)),
    st.builds(ManifestEntry, _path, st.just("l"), target=_path),
)
_manifest = st.lists(_entry, max_size=8, unique_by=lambda e: e.path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "bin/run").write_text("#!/bin/sh\n")
    (root / "bin/run").chmod(0o755)
    (root / "empty").write_bytes(b"")
    (root / "link").symlink_to("bin/run")
    return root


@given(_manifest)
def test_a_manifest_reads_back_as_it_was_written(entries: list[ManifestEntry]) -> None:
    assert set(manifest.decode(manifest.encode(entries))) == set(entries)


@given(_manifest)
def test_order_of_entries_does_not_change_the_digest(entries: list[ManifestEntry]) -> None:
    assert manifest.digest(entries) == manifest.digest(list(reversed(entries)))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        entries = manifest.decode(data)
    except TrustError:
        return
    assert manifest.encode(entries) == data


FILE_LINE = b'{"h":"%s","k":"f","m":"644","p":"a","s":0}\n' % EMPTY_SHA256.encode()


@pytest.mark.parametrize(
    ("promise", "data"),
    [
        ("a name twice", FILE_LINE + FILE_LINE),
        ("a missing last newline", FILE_LINE.rstrip()),
        ("an empty line", FILE_LINE + b"\n"),
        ("blanks between keys", FILE_LINE.replace(b",", b", ")),
        ("an unknown key", FILE_LINE.replace(b'"k"', b'"j":1,"k"')),
        ("a set-id bit", FILE_LINE.replace(b"644", b"4755")),
        ("a negative size", FILE_LINE.replace(b'"s":0', b'"s":-1')),
        ("an unknown kind", b'{"k":"c","p":"a"}\n'),
        ("a path that climbs", b'{"k":"d","p":"a/../.."}\n'),
        ("an absolute path", b'{"k":"d","p":"/etc"}\n'),
        ("a name longer than the file system takes", b'{"k":"d","p":"%s"}\n' % (b"x" * 256)),
        ("a symlink to nothing", b'{"k":"l","p":"a","t":""}\n'),
        ("a number for a path", b'{"k":"d","p":1}\n'),
        ("an array", b"[]\n"),
        ("nesting without end", b"[" * 100_000 + b"\n"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_malformed_manifest_is_refused(promise: str, data: bytes) -> None:
    with pytest.raises(HostileArchive):
        manifest.decode(data)


def link(path: str, target: str) -> ManifestEntry:
    return ManifestEntry(path, "l", target=target)


def directory(path: str) -> ManifestEntry:
    return ManifestEntry(path, "d", 0o755)


@pytest.mark.parametrize(
    ("promise", "entries"),
    [
        ("absolute", [link("a", "/etc/passwd")]),
        ("parent of the tree", [link("a", "..")]),
        ("climbs from below", [directory("d"), link("d/a", "../../x")]),
        (
            "climbs by way of another",
            [directory("d"), directory("d/e"), link("d/e/up", ".."), link("a", "d/e/up/../..")],
        ),
        ("climbs by way of what is not there", [link("a", "x/../../y")]),
        ("chain to an absolute one", [link("a", "b"), link("b", "c"), link("c", "/")]),
        ("loop", [link("a", "b"), link("b", "a")]),
        ("loop that grows", [link("a", "a/a")]),
        ("nothing", [link("a", "")]),
        ("NUL", [link("a", "b\0c")]),
        ("too long", [link("a", "x/" * 2000)]),
        ("parent is a symlink", [directory("d"), link("a", "d"), ManifestEntry("a/f", "f", 0o644)]),
        ("parent is a file", [ManifestEntry("a", "f", 0o644), ManifestEntry("a/f", "f", 0o644)]),
        ("parent is missing", [ManifestEntry("a/f", "f", 0o644)]),
        ("twice", [directory("a"), link("a", "b")]),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_a_tree_that_does_not_stay_within_itself_is_refused(promise: str, entries: list[ManifestEntry]) -> None:
    with pytest.raises(HostileArchive):
        manifest.check(entries)


def test_links_within_the_tree_are_fine() -> None:
    manifest.check(
        [
            directory("lib"),
            directory("lib/a"),
            ManifestEntry("lib/x.so.1", "f", 0o755),
            link("lib/x.so", "x.so.1"),
            link("lib/a/up", ".."),
            link("lib64", "./lib/a/up/"),
            link("root", "lib/a/../.."),
            link("dangling", "lib64/not-there"),
        ]
    )


_step = st.sampled_from(["a", "b", "c", "..", "."])
_links = st.dictionaries(
    st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a"]),
    st.lists(_step, min_size=1, max_size=5).map("/".join),
    min_size=1,
)


@given(_links)
def test_accepted_links_stay_within_the_tree_as_the_kernel_sees_it(links: dict[str, str]) -> None:
    entries = [directory("d"), directory("d/e"), *(link(p, t) for p, t in links.items())]
    try:
        manifest.check(entries)
    except HostileArchive:
        return
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name).resolve()
        (outer / "tree/d/e").mkdir(parents=True)
        for path, target in links.items():
            (outer / "tree" / path).symlink_to(target)
        for path in links:
            assert (outer / "tree" / path).resolve().is_relative_to(outer / "tree")


def test_scan_tells_kinds_modes_sizes_and_digests(tree: Path) -> None:
    assert manifest.scan(tree) == (
        ManifestEntry("bin", "d", 0o755),
        ManifestEntry("bin/run", "f", 0o755, 10, hashlib.sha256(b"#!/bin/sh\n").hexdigest()),
        ManifestEntry("empty", "f", 0o644, 0, EMPTY_SHA256),
        ManifestEntry("link", "l", target="bin/run"),
    )


def test_tree_of_counts_every_member_and_the_bytes_of_files(tree: Path) -> None:
    signed = manifest.tree_of(manifest.scan(tree))
    assert (signed.size_bytes, signed.file_count) == (10, 4)


def test_an_untouched_tree_has_no_difference_whatever_its_times(tree: Path) -> None:
    expected = manifest.scan(tree)
    os.utime(tree / "bin/run", (1, 1))
    assert manifest.difference(expected, tree) == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: (t / "bin/run").write_text("#!/bin/ls\n"), "bin/run was changed"),
        (lambda t: (t / "bin/run").chmod(0o644), "bin/run was changed"),
        (lambda t: (t / "bin/run").chmod(0o4755), "bin/run was changed"),
        (lambda t: (t / "empty").unlink(), "empty is missing"),
        (lambda t: ((t / "link").unlink(), (t / "link").symlink_to("/bin/sh")), "link was changed"),
        (lambda t: ((t / "empty").unlink(), os.mkfifo(t / "empty")), "empty was changed"),
        (lambda t: (t / "bin/new").touch(), "bin/new was added"),
    ],
)
def test_every_change_of_a_tree_is_found(tree: Path, change: object, said: str) -> None:
    expected = manifest.scan(tree)
    change(tree)  # type: ignore[operator]
    assert manifest.difference(expected, tree) == said
