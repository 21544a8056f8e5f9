"""The signed entry of a package: it comes back as it was, and hostile ones are refused with the field's name."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent import bencode, entry
from jobagent.model import (
    Archive,
    Blob,
    EnvironmentAction,
    EnvironmentChange,
    Package,
    PackageId,
    PackageState,
    Tree,
    namespace_of,
    owner_of,
)

hex40 = st.text("0123456789abcdef", min_size=40, max_size=40)
hex64 = st.text("0123456789abcdef", min_size=64, max_size=64)
words = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.+~-]{0,20}\Z")
namespaces = st.from_regex(r"\A[a-z0-9_][a-z0-9_.+~-]{0,20}\Z").filter(lambda n: not n.startswith("user."))
namespaces |= words.map(lambda w: f"user.{w}")
sizes = st.integers(0, entry.MAX_SIZE_BYTES)
prose = st.text(st.characters(categories=("L", "N", "P", "S")), max_size=60)
blobs = st.builds(Blob, hex64, st.integers(0, entry.MAX_MANIFEST_BYTES))
package_ids = st.builds(PackageId, namespaces, words, words)
packages = st.builds(
    Package,
    id=package_ids,
    platform=words,
    archive=st.builds(
        Archive,
        file_name=words,
        format=st.sampled_from(["tar.zst", "tar.gz", "file"]),
        sha256=hex64,
        size_bytes=st.integers(1, entry.MAX_SIZE_BYTES),
        infohash_v1=hex40 | st.just(""),
        infohash_v2=hex64,
    ),
    tree=st.builds(Tree, blobs, sizes, st.integers(0, entry.MAX_FILES)),
    published_s=st.integers(0, entry.MAX_TIME_S),
    dependencies=st.lists(package_ids, max_size=4, unique=True).map(tuple),
    environment=st.lists(
        st.builds(
            EnvironmentChange,
            st.sampled_from(EnvironmentAction),
            st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,20}\Z"),
            prose,
        ),
        max_size=4,
    ).map(tuple),
    state=st.sampled_from(PackageState),
    reason=prose,
    description=prose,
    licence=prose,
    pfns=st.lists(words.map(lambda w: f"https://mirror.example/{w}"), max_size=3).map(tuple),
    provenance=st.none() | blobs,
)

PACKAGE = Package(
    id=PackageId("alice", "ROOT", "v6-36"),
    platform="Linux-x86_64",
    archive=Archive("ROOT-v6-36.tar.zst", "tar.zst", "a" * 64, 1234, "b" * 40, "c" * 64),
    tree=Tree(Blob("d" * 64, 99), 5678, 12),
    published_s=1_700_000_000,
    dependencies=(PackageId("alice", "GEANT3", "v4-2"),),
    environment=(EnvironmentChange(EnvironmentAction.PREPEND, "PATH", "{root}/bin"),),
    pfns=("https://mirror.example/ROOT.tar.zst",),
    provenance=Blob("e" * 64, 10),
)


def hostile(change):
    """The entry of PACKAGE as it would come from JSON, changed by the test."""
    good = entry.encode(PACKAGE)
    custom = json.loads(json.dumps(good.custom))
    parts = {"path": good.path, "size_bytes": good.size_bytes, "sha256": good.sha256, "custom": custom}
    change(parts)
    return entry.Entry(**parts)


@given(packages)
def test_every_package_comes_back_as_it_was_signed(package):
    encoded = entry.encode(package)
    wire = json.loads(json.dumps(encoded.custom))
    assert entry.decode(dataclasses.replace(encoded, custom=wire)) == package


@given(package_ids, words)
def test_paths_parse_back_to_what_they_name(package_id, platform):
    path = entry.target_path(package_id, platform)
    assert entry.parse_path(path) == (package_id, platform)
    assert path.startswith(entry.name_prefix(package_id.namespace, package_id.name))


@given(namespaces)
def test_the_owner_that_users_write_leads_back_to_the_namespace(namespace):
    entry.checked_namespace(namespace)
    assert namespace_of(owner_of(namespace)) == namespace


@given(st.data())
def test_an_entry_changed_anywhere_is_refused_or_decodes_to_something_valid(data):
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    )
    custom = json.loads(json.dumps(entry.encode(PACKAGE).custom))
    key = data.draw(st.sampled_from([*sorted(custom), "btih", "reason", "later"]))
    custom[key] = data.draw(junk)
    try:
        package = entry.decode(dataclasses.replace(entry.encode(PACKAGE), custom=custom))
    except entry.EntryError:
        return
    assert entry.encode(package)


def test_unknown_keys_of_a_later_agent_are_ignored():
    assert entry.decode(hostile(lambda e: e["custom"].update(later={"x": 1}))) == PACKAGE


def test_an_unknown_format_is_refused_by_number():
    with pytest.raises(entry.EntryError, match="format 2, this agent reads format 1"):
        entry.decode(hostile(lambda e: e["custom"].update(format=2)))


@pytest.mark.parametrize("key", ["format", "file", "archive", "btmh", "manifest", "unpacked", "published", "state"])
def test_a_missing_field_is_named(key):
    with pytest.raises(entry.EntryError, match=key):
        entry.decode(hostile(lambda e: e["custom"].pop(key)))


@pytest.mark.parametrize(
    "path",
    [
        "alice/ROOT/v6-36/Linux-x86_64",
        "alice/0000/ROOT/v6-36/Linux-x86_64",
        "alice/BIN/ROOT/../Linux-x86_64",
        "alice/BIN/ROOT/v6-36/",
        "/alice/BIN/ROOT/v6-36/Linux-x86_64",
        "ALICE/BIN/ROOT/v6-36/Linux-x86_64",
        "alice/BIN/ROOT/v6-36/Linux-x86_64\n",
        "user./BIN/ROOT/v6-36/Linux-x86_64",
        "alice/BIN/RO OT/v6-36/Linux-x86_64",
        "alice/\n\n\n\n/ROOT/v6-36/Linux-x86_64",
    ],
)
def test_a_path_that_does_not_name_its_package_is_refused(path):
    path = path.replace("BIN", entry.name_bin("ROOT"))
    with pytest.raises(entry.EntryError) as caught:
        entry.decode(hostile(lambda e: e.update(path=path)))
    assert "\n" not in str(caught.value)


CUSTOM = {
    "a file name with a slash": {"file": "../x"},
    "a file name with a leading dot": {"file": ".x"},
    "a file name of 300 characters": {"file": "x" * 300},
    "an infohash in capitals": {"btmh": "C" * 64},
    "a short infohash": {"btih": "b" * 39},
    "a boolean for a number": {"published": True},
    "a negative time": {"published": -1},
    "a float for a number": {"published": 1.5},
    "a manifest beyond its limit": {"manifest": {"sha256": "d" * 64, "bytes": 2**40}},
    "a manifest without digest": {"manifest": {"bytes": 3}},
    "ten billion files": {"unpacked": {"bytes": 1, "files": 10**10}},
    "an unknown state": {"state": "beta"},
    "a reason of two lines": {"reason": "a\nb"},
    "a terminal escape in the description": {"description": "\x1b[2J"},
    "a right-to-left override": {"description": "\u202e"},
    "a variable with an equals sign": {"environment": [["set", "A=B", "x"]]},
    "a value with NUL": {"environment": [["set", "A", "x\0"]]},
    "an unknown action": {"environment": [["exec", "A", "x"]]},
    "a short change": {"environment": [["set", "A"]]},
    "too many changes": {"environment": [["set", "A", "x"]] * 600},
    "a dependency without version": {"requires": ["alice/ROOT"]},
    "a dependency that climbs": {"requires": ["alice/../x"]},
    "a dependency twice": {"requires": ["alice/A/1", "alice/A/1"]},
    "too many dependencies": {"requires": [f"alice/A{n}/1" for n in range(300)]},
    "a PFN with a blank": {"pfns": ["https://x/ y"]},
    "a PFN without scheme": {"pfns": ["/etc/passwd"]},
    "too many PFNs": {"pfns": ["https://x/"] * 17},
    "100 KB of padding": {"later": "x" * 100_000},
}


@pytest.mark.parametrize("fields", CUSTOM.values(), ids=CUSTOM.keys())
def test_hostile_fields_are_refused_with_one_line(fields):
    with pytest.raises(entry.EntryError) as caught:
        entry.decode(hostile(lambda e: e["custom"].update(copy.deepcopy(fields))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -1, 2**53, True, 1.5, "1234", None, [1]])
def test_an_impossible_archive_length_is_refused(size):
    with pytest.raises(entry.EntryError, match="archive length"):
        entry.decode(hostile(lambda e: e.update(size_bytes=size)))


def test_what_could_not_be_decoded_is_not_encoded():
    with pytest.raises(entry.EntryError, match="description"):
        entry.encode(dataclasses.replace(PACKAGE, description="two\nlines"))


def test_files_lie_where_the_web_server_has_them():
    assert entry.archive_path(PACKAGE.archive) == "archives/" + "a" * 64 + "/ROOT-v6-36.tar.zst"
    assert entry.torrent_path(PACKAGE.archive) == "torrents/" + "c" * 64 + ".torrent"
    assert entry.object_path(PACKAGE.tree.manifest) == "objects/" + "d" * 64


def torrent_of(name=b"ROOT-v6-36.tar.zst", length=1234):
    info = bencode.encode(
        {
            b"file tree": {name: {b"": {b"length": length, b"pieces root": b"r" * 32}}},
            b"length": length,
            b"meta version": 2,
            b"name": name,
            b"piece length": 16384,
            b"pieces": b"p" * 20,
        }
    )
    return b"d4:info" + info + b"e", info


def signed_for(info):
    return dataclasses.replace(
        PACKAGE.archive, infohash_v1=hashlib.sha1(info).hexdigest(), infohash_v2=hashlib.sha256(info).hexdigest()
    )


def test_the_signed_torrent_is_accepted():
    torrent, info = torrent_of()
    entry.check_torrent(torrent, signed_for(info))


@pytest.mark.parametrize(
    ("torrent", "archive", "reason"),
    [
        (torrent_of()[0], PACKAGE.archive, "another sha256"),
        (
            torrent_of()[0],
            dataclasses.replace(signed_for(torrent_of()[1]), infohash_v1="0" * 40),
            "another sha1",
        ),
        (torrent_of(b"evil")[0], signed_for(torrent_of(b"evil")[1]), "not of the one file"),
        (torrent_of(length=7)[0], signed_for(torrent_of(length=7)[1]), "another length"),
        (b"<html>", PACKAGE.archive, "not a dictionary"),
        (b"", PACKAGE.archive, "not a dictionary"),
        (b"d4:infoi1ee", signed_for(b"i1e"), "info is not a dictionary"),
    ],
)
def test_any_other_torrent_is_refused_with_the_reason(torrent, archive, reason):
    with pytest.raises(ValueError, match=reason):
        entry.check_torrent(torrent, archive)
