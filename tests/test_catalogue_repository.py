"""The signed catalogue on disk: what may change, who must sign, and that readers always see a whole state."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobagent import durable
from jobagent.central.catalogue import bins
from jobagent.central.catalogue.changes import changes
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.online import Validity
from jobagent.central.catalogue.repository import Repository
from jobagent.central.placing import Draft
from jobagent.errors import AlreadyPublished, DigestMismatch, ManagerError, UnknownPackage, UsageError
from jobagent.model import PackageId, PackageState
from tests.catalogue_field import draft, entry_for, field_in, no_passphrase


@pytest.fixture
def place(tmp_path):
    with field_in(tmp_path) as made:
        yield made


def only(directory: Path, *names: str) -> KeyStore:
    """A person who has only these keys of the directory, and the public halves of all."""
    own = directory.with_name(f"keys of {' '.join(names)}")
    shutil.copytree(directory, own)
    for path in own.glob("*.pem"):
        if path.stem not in names:
            path.unlink()
    return KeyStore(own, passphrase=no_passphrase)


def person(place, *names):
    return Repository(place.catalogue, only(place.keys.directory, *names))


def published(place, namespace=None):
    return sorted(str(p.id) for p in place.repository.packages(namespace))


def test_a_published_package_is_signed_and_all_its_files_are_in_place(place):
    made = draft(place.base, "ROOT")
    assert place.repository.publish([made]).is_published
    assert list(place.repository.packages()) == [made.package]
    archive = place.catalogue / "archives" / made.package.archive.sha256 / made.package.archive.file_name
    assert archive.read_bytes() == made.archive.read_bytes()
    assert archive.stat().st_mode & 0o777 == 0o444
    assert list(place.repository.check(is_deep=True)) == []


def test_the_publishers_own_file_stays_its_own(place):
    made = draft(place.base, "ROOT")
    place.repository.publish([made])
    assert made.archive.stat().st_nlink == 1
    made.archive.write_bytes(b"changed later")
    assert list(place.repository.check(is_deep=True)) == []


def test_an_archive_that_is_ours_is_not_copied(place):
    made = draft(place.base, "ROOT")
    place.repository.publish([Draft(made.package, made.archive, made.torrent, made.objects, is_ours=True)])
    assert made.archive.stat().st_nlink == 2


def test_a_package_is_never_overwritten(place):
    place.repository.publish([draft(place.base, "ROOT")])
    with pytest.raises(AlreadyPublished, match="VO_ALICE@ROOT::1 for Linux-x86_64 is published already"):
        place.repository.publish([draft(place.base, "ROOT")])


def test_a_package_is_never_overwritten_in_one_call_or_in_another_bin(place):
    with pytest.raises(AlreadyPublished):
        place.repository.register([entry_for("ROOT"), entry_for("ROOT")])
    place.repository.register([entry_for(f"P{n}") for n in range(500)])
    with pytest.raises(AlreadyPublished):
        place.repository.register([entry_for("P7")])


@pytest.mark.parametrize("field", ["archive", "torrent", "objects"])
def test_files_that_are_not_what_is_signed_are_refused_and_nothing_is_published(place, field):
    good, other = draft(place.base, "ROOT"), draft(place.base, "Other")
    parts = {"archive": good.archive, "torrent": good.torrent, "objects": good.objects, field: getattr(other, field)}
    with pytest.raises((DigestMismatch, ManagerError)):
        place.repository.publish([Draft(good.package, **parts)])
    assert published(place) == []
    assert place.repository.waiting() == ()


def test_an_unknown_vo_cannot_publish(place):
    with pytest.raises(ManagerError, match="no VO carol"):
        place.repository.register([entry_for("ROOT", namespace="carol")])


@pytest.mark.parametrize("name", ["root", "targets", "snapshot", "timestamp", "a--b", "Alice", "a/b", "", "user."])
def test_a_vo_name_that_would_collide_is_refused(place, name):
    with pytest.raises(UsageError, match="VO name"):
        place.repository.add_vo(name, [place.keys.named("alice-1").key])


def test_a_vo_cannot_be_added_twice(place):
    with pytest.raises(UsageError, match="VO alice exists"):
        place.repository.add_vo("alice", [place.keys.named("alice-1").key])


@pytest.mark.parametrize("threshold", [0, 2, -1])
def test_a_threshold_that_cannot_be_met_is_refused(place, threshold):
    with pytest.raises(UsageError, match="cannot need"):
        place.repository.add_vo("carol", [place.keys.named("alice-1").key], threshold)


def test_state_and_reason_are_signed_for_one_platform_or_all(place):
    package = entry_for("ROOT")
    place.repository.register([package])
    place.repository.set_state(package.id, PackageState.BANNED, reason="crashes")
    (found,) = place.repository.packages()
    assert (found.state, found.reason) == (PackageState.BANNED, "crashes")
    place.repository.set_state(package.id, PackageState.RELEASED, platform="Linux-x86_64")
    assert next(place.repository.packages()) == package
    with pytest.raises(UnknownPackage):
        place.repository.set_state(package.id, PackageState.BANNED, platform="Linux-aarch64", reason="x")
    with pytest.raises(UnknownPackage):
        place.repository.set_state(PackageId("alice", "ROOT", "9"), PackageState.BANNED, reason="x")
    with pytest.raises(UsageError, match="reason"):
        place.repository.set_state(package.id, PackageState.BANNED, reason="two\nlines")


def test_a_large_vo_is_divided_and_every_package_keeps_its_path(place):
    place.repository.register([entry_for(f"P{n}") for n in range(300)])
    before = {p for _, role in place.repository.roles() for p in role.targets}
    place.repository.register([entry_for(f"Q{n}") for n in range(200)])
    sizes = {name: len(role.targets) for name, role in place.repository.roles()}
    assert sizes["alice"] == 0
    assert len([name for name in sizes if name.startswith("alice--")]) == 16
    after = {p for _, role in place.repository.roles() for p in role.targets}
    assert before < after
    assert len(after) == 500


def test_a_very_large_vo_is_divided_by_two_digits(place, monkeypatch):
    monkeypatch.setattr(bins, "MAX_TARGETS", 40)
    place.repository.register([entry_for(f"P{n}") for n in range(700)])
    sizes = {name: len(role.targets) for name, role in place.repository.roles()}
    assert len(sizes) == 1 + 2 + 256
    assert max(sizes.values()) <= bins.MAX_TARGETS
    place.repository.register([entry_for("Late")])
    place.repository.set_state(PackageId("alice", "P77", "1"), PackageState.BANNED, reason="x")
    assert len(published(place)) == 701


def test_few_but_huge_entries_divide_a_vo_too(place):
    wide = {"description": "x" * 4000, "licence": "y" * 4000, "reason": "z" * 4000}
    place.repository.register([entry_for(f"P{n}", **wide) for n in range(200)])
    assert len([name for name, _ in place.repository.roles() if name.startswith("alice--")]) == 16


def test_publishing_leaves_other_roles_alone(place):
    place.repository.register([entry_for("ROOT", namespace="bob")])
    before = {n: v for n, v in place.repository.shelf.versions().items() if n in {"bob", "targets", "root"}}
    place.repository.register([entry_for("ROOT")])
    assert {n: place.repository.shelf.versions()[n] for n in before} == before


def test_a_vo_manager_needs_only_its_own_key_and_the_central_service_only_the_online_key(place):
    manager, service = person(place, "alice-1"), person(place, "online")
    made = draft(place.base, "ROOT")
    signed = manager.publish([made])
    assert not signed.is_published
    assert any("online key" in note for note in signed.notes)
    assert published(place) == []
    assert manager.publish([draft(place.base, "Pythia")]).waiting == ()
    assert service.refresh().is_published
    assert published(place) == ["VO_ALICE@Pythia::1", "VO_ALICE@ROOT::1"]


def test_without_a_key_that_may_sign_nothing_is_changed(place):
    for keys in (None, only(place.keys.directory, "bob-1")):
        with pytest.raises(ManagerError, match="no key that may sign alice"):
            Repository(place.catalogue, keys).register([entry_for("ROOT")])
    assert place.repository.waiting() == ()


def test_two_people_sign_one_after_the_other(place):
    second = place.keys.new("alice-2")
    place.repository.rotate_vo("alice", [place.keys.named("alice-1").key, second.key], 2)
    anne, bert = person(place, "alice-1"), person(place, "alice-2", "online")
    signed = anne.register([entry_for("ROOT")])
    assert [str(w) for w in signed.waiting] == ["alice v3 has 1 of 2 signatures"]
    assert published(place) == []
    assert any("+ alice/" in line and "/ROOT/1/" in line for line in changes(bert.shelf, "alice"))
    assert bert.sign().is_published
    assert published(place) == ["VO_ALICE@ROOT::1"]


def test_a_change_on_top_of_one_that_waits_needs_both_signatures_again(place):
    second = place.keys.new("alice-2")
    place.repository.rotate_vo("alice", [place.keys.named("alice-1").key, second.key], 2)
    anne, bert = person(place, "alice-1"), person(place, "alice-2", "online")
    anne.register([entry_for("ROOT")])
    anne.register([entry_for("Pythia")])
    assert [str(w) for w in bert.waiting()] == ["alice v3 has 1 of 2 signatures"]
    bert.sign()
    assert published(place) == ["VO_ALICE@Pythia::1", "VO_ALICE@ROOT::1"]


def test_a_change_that_waits_can_be_given_up(place):
    second = place.keys.new("alice-2")
    place.repository.rotate_vo("alice", [place.keys.named("alice-1").key, second.key], 2)
    person(place, "alice-1").register([entry_for("ROOT")])
    place.repository.discard("alice")
    assert place.repository.waiting() == ()
    place.repository.register([entry_for("Pythia")])
    assert published(place) == ["VO_ALICE@Pythia::1"]


def test_a_division_with_two_signers_is_published_whole_or_not_at_all(place):
    second = place.keys.new("alice-2")
    place.repository.rotate_vo("alice", [place.keys.named("alice-1").key, second.key], 2)
    anne, bert = person(place, "alice-1", "online"), person(place, "alice-2", "online")
    anne.register([entry_for(f"P{n}") for n in range(450)])
    waiting = [w.role for w in anne.waiting()]
    assert len(waiting) == 17
    bert.sign([r for r in waiting if r != "alice--7"])
    assert published(place) == []
    bert.sign(["alice--7"])
    assert len(published(place)) == 450


def test_a_catalogue_is_founded_by_several_people_with_their_own_keys(tmp_path):
    people = {}
    shared = tmp_path / "public"
    shared.mkdir()
    for names in (("root-1", "targets-1"), ("root-2", "targets-2"), ("root-3",), ("online",)):
        store = KeyStore(tmp_path / names[0], passphrase=no_passphrase)
        for name in names:
            store.new(name)
            shutil.copy(store.directory / f"{name}.pub", shared)
        people[names[0]] = store
    catalogue = tmp_path / "catalogue"
    for public in shared.iterdir():
        for store in people.values():
            if not (store.directory / public.name).exists():
                shutil.copy(public, store.directory)
    _, signed = Repository.create(catalogue, people["root-1"])
    assert not signed.is_published
    assert {w.role: (w.signatures, w.threshold) for w in signed.waiting} == {"root": (1, 2), "targets": (1, 2)}
    Repository(catalogue, people["root-2"]).sign()
    assert Repository(catalogue, people["online"]).refresh().is_published
    assert list(Repository(catalogue).packages()) == []


def test_founders_sign_in_any_order_each_with_one_key(tmp_path):
    names = ("root-1", "root-2", "root-3", "targets-1", "targets-2", "online")
    people = {}
    for name in names:
        people[name] = KeyStore(tmp_path / name, passphrase=no_passphrase)
        people[name].new(name)
    for name, other in itertools.permutations(names, 2):
        shutil.copy(people[name].directory / f"{name}.pub", people[other].directory)
    catalogue = tmp_path / "catalogue"
    _, signed = Repository.create(catalogue, people["root-1"])
    for name, waiting in (
        ("root-2", {"root", "targets"}),
        ("targets-1", {"root", "targets"}),
        ("targets-2", {"root"}),
    ):
        signed = Repository(catalogue, people[name]).sign()
        assert not signed.is_published
        assert {w.role for w in signed.waiting} == waiting, name
    assert Repository(catalogue, people["online"]).refresh().is_published


def test_a_vo_is_added_with_the_public_half_of_its_key_alone(place):
    other = KeyStore(place.base / "carol's keys", passphrase=no_passphrase)
    key = other.new("carol-1").key
    assert place.repository.add_vo("carol", [key]).is_published
    signed = Repository(place.catalogue, other).register([entry_for("ROOT", namespace="carol")])
    assert not signed.is_published
    place.repository.refresh()
    assert published(place, "carol") == ["VO_CAROL@ROOT::1"]


def test_a_vo_that_comes_back_after_a_revocation_starts_empty_with_a_higher_version(place):
    place.repository.register([entry_for("ROOT")])
    place.repository.revoke_vo("alice")
    assert published(place) == []
    place.repository.add_vo("alice", [place.keys.new("alice-new").key])
    assert published(place) == []
    place.repository.register([entry_for("ROOT")])
    assert published(place) == ["VO_ALICE@ROOT::1"]
    assert place.client().names("alice") == ["ROOT"]


def test_rotation_signs_all_bins_anew(place):
    place.repository.register([entry_for(f"P{n}") for n in range(450)])
    place.repository.rotate_vo("alice", [place.keys.new("alice-2").key])
    assert len(published(place)) == 450
    assert len(place.client().names("alice")) == 450


def test_a_lost_root_key_is_replaced_by_the_two_others(place):
    keys = [place.keys.named(n).key for n in ("root-1", "root-2")] + [place.keys.new("root-4").key]
    two = person(place, "root-1", "root-2", "online")
    assert two.rotate("root", keys).is_published
    assert place.repository.shelf.versions()["root"] == [2, 1]
    assert place.client().refresh().version


def test_a_new_root_waits_for_old_and_new_keys(place):
    fresh = [place.keys.new(f"root-{n}").key for n in (4, 5, 6)]
    one = person(place, "root-1", "root-4", "root-5")
    assert [str(w) for w in one.rotate("root", fresh).waiting] == ["root v2 has 1 of 2 signatures"]
    assert place.repository.shelf.versions()["root"] == [1]
    assert person(place, "root-2", "online").sign().is_published
    assert place.repository.shelf.versions()["root"] == [2, 1]


def test_new_targets_keys_take_over_only_when_they_have_signed_targets(place):
    fresh = [place.keys.new(f"targets-{n}").key for n in (3, 4)]
    without = person(place, "root-1", "root-2", "targets-1", "targets-2", "online")
    signed = without.rotate("targets", fresh)
    assert {w.role for w in signed.waiting} == {"root", "targets"}
    assert place.repository.shelf.versions()["root"] == [1]
    assert place.client().refresh().version
    assert person(place, "targets-3", "targets-4", "online").sign().is_published
    assert place.repository.shelf.versions()["root"] == [2, 1]
    assert place.client().refresh().version


def test_renewal_moves_the_expiry(place):
    before = place.repository.root_bytes()
    place.repository.renew("root")
    place.repository.renew("targets")
    place.repository.renew("alice")
    assert place.repository.root_bytes(2) != before
    assert list(place.repository.check()) == [] or all(not f.is_error for f in place.repository.check())
    assert place.client().refresh().version


def test_refresh_does_nothing_while_nothing_is_due(place):
    before = place.repository.shelf.timestamp_path.read_bytes()
    place.repository.refresh()
    assert place.repository.shelf.timestamp_path.read_bytes() == before
    place.repository.refresh(is_forced=True)
    assert place.repository.shelf.timestamp_path.read_bytes() != before


def test_refresh_renews_what_is_half_way_to_its_expiry(place):
    number = place.repository.snapshot_version()
    later = Repository(place.catalogue, place.keys, clock=lambda: time.time() + 13 * 3600)
    before = place.repository.shelf.timestamp_path.read_bytes()
    later.refresh()
    assert place.repository.shelf.timestamp_path.read_bytes() != before
    assert place.repository.snapshot_version() == number
    Repository(place.catalogue, place.keys, clock=lambda: time.time() + 4 * 86400).refresh()
    assert place.repository.snapshot_version() == number + 1


def test_refresh_without_the_online_key_says_so(place):
    with pytest.raises(ManagerError, match="online key is not at hand"):
        person(place, "alice-1").refresh(is_forced=True)


def test_old_versions_are_removed_but_never_roots(place):
    for number in range(30):
        place.repository.register([entry_for(f"P{number}")])
    versions = place.repository.shelf.versions()
    assert len(versions["snapshot"]) <= 17
    assert len(versions["alice"]) <= 17
    assert versions["root"] == [1]
    assert len(published(place)) == 30


class Crash(BaseException):
    """The process is gone: no clean-up of ours runs after it."""


def crash_at(monkeypatch, number, *, is_before):
    """Let the n-th file that is put in place be the last thing that happens."""
    left = [number]
    replace = os.replace

    def counted(source, target, **options):
        left[0] -= 1
        if left[0] == 0 and is_before:
            raise Crash
        replace(source, target, **options)
        if left[0] == 0:
            raise Crash

    monkeypatch.setattr(durable.os, "replace", counted)


OPERATIONS = {
    "publish": lambda place: place.repository.publish([draft(place.base, "ROOT")]),
    "ban": lambda place: place.repository.set_state(PackageId("alice", "Old", "1"), PackageState.BANNED, reason="x"),
    "divide": lambda place: place.repository.register([entry_for(f"P{n}") for n in range(30)]),
    "rotate a VO": lambda place: place.repository.rotate_vo("alice", [place.keys.named("spare").key]),
    "rotate online": lambda place: place.repository.rotate("online", [place.keys.named("spare").key]),
    "rotate root": lambda place: place.repository.rotate(
        "root", [place.keys.named(n).key for n in ("spare", "root-1", "root-2")]
    ),
}


def names_now(reader):
    reader.refresh()
    return set(reader.names("alice"))


def crash_once(directory, operation, step, *, is_before):
    """Crash at one step, look as an old and a new reader, go on; return whether the operation came so far."""
    with field_in(directory) as place, pytest.MonkeyPatch.context() as monkeypatch:
        place.repository.publish([draft(place.base, "Old")])
        place.keys.new("spare")
        mirrors = (place.catalogue.as_uri(),)
        reader = place.client(mirrors=mirrors)
        assert names_now(reader) == {"Old"}
        crash_at(monkeypatch, step, is_before=is_before)
        try:
            operation(place)
            has_crashed = False
        except Crash:
            has_crashed = True
        monkeypatch.undo()
        assert "Old" in names_now(reader)
        assert "Old" in names_now(place.client(state="new", mirrors=mirrors))
        place.repository.sign()
        place.repository.publish([draft(place.base, "After")])
        assert {"Old", "After"} <= names_now(reader)
        return has_crashed


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_reader_sees_a_whole_state_wherever_a_publisher_crashes_and_the_next_one_goes_on(
    tmp_path, name, monkeypatch
):
    monkeypatch.setattr(bins, "MAX_TARGETS", 20)
    step = 1
    while crash_once(tmp_path / f"{step} before", OPERATIONS[name], step, is_before=True):
        crash_once(tmp_path / f"{step} after", OPERATIONS[name], step, is_before=False)
        step += 1 if name != "divide" else 7  # a division has 40 steps of a kind
    assert step > 3


def test_two_publishers_at_once_lose_nothing(place):
    program = f"""
import sys
from pathlib import Path
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Repository
from tests.catalogue_field import entry_for
repository = Repository(Path({str(place.catalogue)!r}), KeyStore(Path({str(place.keys.directory)!r})))
for number in range(6):
    repository.register([entry_for(sys.argv[1] + str(number))])
"""
    running = [subprocess.Popen([sys.executable, "-c", program, letter]) for letter in "ABC"]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(published(place)) == 18


def test_an_audit_finds_what_is_wrong(place):
    first, second = draft(place.base, "ROOT"), draft(place.base, "Pythia")
    place.repository.publish([first, second])
    base = place.catalogue
    archive = base / "archives" / first.package.archive.sha256 / first.package.archive.file_name
    archive.chmod(0o644)
    archive.write_bytes(b"x" * archive.stat().st_size)
    (base / "torrents" / f"{second.package.archive.infohash_v2}.torrent").unlink()
    (base / "objects" / second.package.tree.manifest.sha256).unlink()
    shallow = [str(f) for f in place.repository.check()]
    assert any("torrent cannot be used" in line for line in shallow)
    assert any("is missing" in line for line in shallow)
    deep = [str(f) for f in place.repository.check(is_deep=True)]
    assert any("VO_ALICE@ROOT::1" in line and "not what was signed" in line for line in deep)


def test_an_audit_finds_what_expired_and_what_soon_will(tmp_path):
    with field_in(tmp_path, validity=Validity(timestamp_s=3600, vo_s=5 * 86400)) as place:
        found = {f.message.split()[0]: f.is_error for f in place.repository.check()}
        assert found == {"timestamp": False, "alice": False, "bob": False}
        later = Repository(place.catalogue, clock=lambda: time.time() + 2 * 3600)
        assert {f.message.split()[0]: f.is_error for f in later.check()}["timestamp"]


def test_an_audit_of_damaged_metadata_goes_on_with_the_rest(place):
    place.repository.publish([draft(place.base, "ROOT", namespace="bob")])
    place.repository.shelf.path("alice", 1).write_bytes(b"{}")
    found = [str(f) for f in place.repository.check()]
    assert any("alice" in line for line in found)
    assert not any("bob" in line for line in found)


def test_a_role_file_that_an_intruder_left_does_not_become_the_base_of_the_next(place):
    place.repository.register([entry_for("ROOT")])
    place.repository.shelf.path("alice", 9).write_bytes(place.repository.shelf.path("alice", 1).read_bytes())
    place.repository.register([entry_for("Pythia")])
    assert published(place) == ["VO_ALICE@Pythia::1", "VO_ALICE@ROOT::1"]


def test_a_directory_that_is_no_catalogue_is_one_line(tmp_path):
    with pytest.raises(ManagerError, match="is no catalogue"):
        list(Repository(tmp_path).packages())
    with pytest.raises(ManagerError):
        Repository(tmp_path / "nothing", KeyStore(tmp_path / "keys")).refresh()


def test_a_second_catalogue_is_not_made_over_the_first(place):
    with pytest.raises(UsageError, match="holds a catalogue already"):
        Repository.create(place.catalogue, place.keys)
