"""What an attacker who owns servers, mirrors or some keys can do: deny service, and nothing else."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Snapshot, TargetFile

from jobagent.central.catalogue import rolefile
from jobagent.central.catalogue.chain import SNAPSHOT, TIMESTAMP, published
from jobagent.central.catalogue.online import Online, Validity
from jobagent.central.catalogue.repository import Repository
from jobagent.errors import BadSignature, CatalogueExpired, CatalogueUnreachable, SupplyError, TrustError
from tests.catalogue_field import Field, Server, entry_for, field_in, tuf_time

DAY_S = 86400


@pytest.fixture
def place(tmp_path):
    """A catalogue with one package of alice and one of bob, served."""
    with field_in(tmp_path) as made:
        made.repository.register([entry_for("ROOT"), entry_for("ROOT", namespace="bob")])
        yield made


def edit(place: Field, role: str, change) -> None:
    """Sign a change that the honest tools would not make, with the keys of that role."""
    with place.repository.shelf.lock():
        metadata = place.repository._open(place.repository._ceremony(), role)
        change(metadata.signed)
        place.repository._submit({role: metadata})


def versions(client, namespace="alice", name="ROOT"):
    return [p.id.version for p in client.versions(namespace, name)]


@pytest.mark.acceptance(19)
def test_a_replayed_old_catalogue_is_refused_as_a_rollback(place):
    old = place.metadata("timestamp.json")
    place.repository.register([entry_for("ROOT", "2")])
    place.client().refresh()
    place.server.answers["metadata/timestamp.json"] = old
    with pytest.raises(BadSignature, match=r"timestamp version \d+ must be >= \d+"):
        place.client().refresh()


@pytest.mark.acceptance(19)
def test_an_older_role_of_a_vo_is_refused_although_the_online_key_signed_for_it(place):
    client = place.client()
    place.repository.register([entry_for("ROOT", "2")])
    assert versions(client) == ["1", "2"]
    online = Online(place.repository.shelf, place.keys, validity=Validity(), clock=time.time)
    ceremony = place.repository._ceremony()
    before = ceremony_state(place)
    rolled = {**before.versions, "alice": before.versions["alice"] - 1}
    snapshot = online._next_snapshot(before, rolled, True)
    timestamp = online._next_timestamp(before, snapshot, True)
    online._sign({SNAPSHOT: snapshot, TIMESTAMP: timestamp}, [ceremony.root()], ceremony.root(), before)
    online._commit(snapshot, timestamp, ceremony.root(), None)
    with pytest.raises(BadSignature, match=r"alice.json version"):
        place.client().refresh()


def ceremony_state(place):
    return published(place.repository.shelf, place.repository._ceremony().roots())


@pytest.mark.acceptance(19)
def test_a_frozen_catalogue_is_refused_when_it_expires(place):
    place.client().refresh()
    frozen = {f"metadata/{p.name}": p.read_bytes() for p in (place.catalogue / "metadata").iterdir()}
    place.repository.refresh(is_forced=True)
    place.server.answers.update(frozen)
    later = time.time() + 1.1 * DAY_S
    place.server.clock = lambda: later
    with (
        tuf_time(later),
        pytest.raises(CatalogueExpired, match=r"timestamp expired at 20.* UTC, here it is 20.* UTC"),
    ):
        place.client(clock=lambda: later).refresh()


@pytest.mark.acceptance(16)
def test_an_expired_timestamp_stops_new_installs_and_shows_expiry_and_local_clock(tmp_path):
    yesterday = time.time() - 2 * DAY_S
    with field_in(tmp_path, clock=lambda: yesterday) as place, pytest.raises(CatalogueExpired) as caught:
        place.client().versions("alice", "ROOT")
    line = str(caught.value)
    assert time.strftime("%Y-%m-%d", time.gmtime(yesterday + DAY_S)) in line
    assert f"here it is {time.strftime('%Y-%m-%d')}" in line
    assert caught.value.retryable


def test_an_expired_role_of_one_vo_does_not_stop_the_others(tmp_path):
    with field_in(tmp_path, validity=Validity(vo_s=3600)) as place:
        place.repository.register([entry_for("ROOT")])
        edit(place, "bob", lambda role: setattr(role, "expires", role.expires.replace(year=2090)))
        later = time.time() + 2 * 3600
        place.server.clock = lambda: later
        with tuf_time(later):
            client = place.client(clock=lambda: later, refresh_interval_s=60.0)
            assert client.names("bob") == []
            with pytest.raises(CatalogueExpired, match="alice expired at"):
                client.versions("alice", "ROOT")


@pytest.mark.acceptance(19)
def test_a_snapshot_of_one_day_with_a_role_of_another_is_refused(place):
    old = place.metadata("2.alice.json")
    place.repository.register([entry_for("ROOT", "2")])
    place.server.answers["metadata/3.alice.json"] = old
    with pytest.raises(BadSignature, match="alice is v2, but the snapshot says v3"):
        place.client().versions("alice", "ROOT")


@pytest.mark.acceptance(19)
def test_a_snapshot_that_the_timestamp_does_not_name_is_refused(place):
    number = place.repository.snapshot_version()
    place.server.answers[f"metadata/{number}.snapshot.json"] = place.metadata(f"{number - 1}.snapshot.json")
    with pytest.raises(BadSignature):
        place.client().refresh()


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    try:
        while True:
            handler.wfile.write(b" " * 65536)
    except OSError:
        return


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json", "SNAPSHOT"])
def test_endless_data_is_cut_off_and_the_next_mirror_asked(place, name):
    name = name.replace("SNAPSHOT", f"{place.repository.snapshot_version()}.snapshot.json")
    evil = Server(place.catalogue, answers={f"metadata/{name}": endless})
    evil.start()
    try:
        with pytest.raises((CatalogueUnreachable, BadSignature)):
            place.client(mirrors=(evil.url,)).refresh()
        assert place.client(mirrors=(evil.url, place.server.url)).refresh().source == place.server.url
    finally:
        evil.stop()


@pytest.mark.acceptance(13)
def test_a_mirror_that_drips_is_given_up_for_the_next(place):
    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10000")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.02)
        except OSError:
            return

    evil = Server(place.catalogue, answers={"metadata/timestamp.json": drip})
    evil.start()
    try:
        start = time.monotonic()
        client = place.client(mirrors=(evil.url, place.server.url), timeout_s=0.3)
        assert client.refresh().source == place.server.url
        assert time.monotonic() - start < 5
        with pytest.raises(CatalogueUnreachable, match="too slow"):
            place.client(mirrors=(evil.url,), timeout_s=0.3, state="other").refresh()
    finally:
        evil.stop()


def test_a_redirect_is_not_followed(place):
    def elsewhere(handler):
        handler.send_response(302)
        handler.send_header("Location", place.server.url + "metadata/secret")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    place.server.answers["metadata/timestamp.json"] = elsewhere
    with pytest.raises(CatalogueUnreachable, match="redirects elsewhere"):
        place.client().refresh()
    assert "metadata/secret" not in place.server.requests


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"<html>captive portal</html>",
        b"{}",
        b"[" * 10000,
        b'{"signed":{},"signatures":[]}',
        b"\xff" * 500,
        b"null",
    ],
)
@pytest.mark.parametrize("name", ["timestamp.json", "2.alice.json", "2.root.json"])
def test_garbage_is_one_line_and_no_crash(place, name, garbage):
    place.server.answers[f"metadata/{name}"] = garbage
    with pytest.raises((TrustError, SupplyError)) as caught:
        place.client().versions("alice", "ROOT")
    assert "\n" not in str(caught.value)


@pytest.mark.acceptance(14)
def test_a_catalogue_signed_by_other_keys_is_refused_naming_role_and_keys(place, tmp_path):
    with field_in(tmp_path / "evil", validity=Validity()) as evil:
        evil.repository.register([entry_for("ROOT", "666")])
        with pytest.raises(BadSignature) as caught:
            place.client(mirrors=(evil.server.url,)).refresh()
        online = evil.keys.named("online").id[:12]
    assert "timestamp was signed by 0/1 keys" in str(caught.value)
    assert f"it is signed by key {online}…, asked for are key {place.keys.named('online').id[:12]}…" in str(
        caught.value
    )


@pytest.mark.acceptance(14)
def test_a_role_of_a_vo_signed_by_another_vo_is_refused_naming_role_and_keys(place):
    forged = Metadata.from_bytes(place.metadata("2.alice.json"))
    (signer,) = place.keys.signers([place.keys.named("bob-1").id])
    forged.sign(signer)
    place.server.answers["metadata/2.alice.json"] = forged.to_bytes()
    with pytest.raises(BadSignature) as caught:
        place.client().versions("alice", "ROOT")
    bob, alice = place.keys.named("bob-1").id[:12], place.keys.named("alice-1").id[:12]
    assert f"alice v2 has 0 of 1 needed signatures: it is signed by key {bob}…" in str(caught.value)
    assert f"asked for are key {alice}…" in str(caught.value)
    assert not caught.value.retryable


def test_a_flipped_bit_in_a_signed_role_is_refused(place):
    data = place.metadata("2.alice.json")
    place.server.answers["metadata/2.alice.json"] = data.replace(b"1700000000", b"1700000001")
    with pytest.raises(BadSignature, match="0 of 1 needed signatures"):
        place.client().versions("alice", "ROOT")


@pytest.mark.acceptance(14)
def test_one_signature_of_two_is_not_enough(place):
    keys = [place.keys.named("alice-1").key, place.keys.new("alice-2").key]
    place.repository.rotate_vo("alice", keys, 2)
    version = ceremony_state(place).versions["alice"]
    single = Metadata.from_bytes(place.metadata(f"{version}.alice.json"))
    single.signatures = dict(list(single.signatures.items())[:1])
    place.server.answers[f"metadata/{version}.alice.json"] = single.to_bytes()
    with pytest.raises(BadSignature, match="1 of 2 needed signatures"):
        place.client().versions("alice", "ROOT")


@pytest.mark.acceptance(14)
def test_the_same_signature_twice_counts_once(place):
    keys = [place.keys.named("alice-1").key, place.keys.new("alice-2").key]
    place.repository.rotate_vo("alice", keys, 2)
    version = ceremony_state(place).versions["alice"]
    raw = json.loads(place.metadata(f"{version}.alice.json"))
    raw["signatures"] = [raw["signatures"][0], raw["signatures"][0]]
    place.server.answers[f"metadata/{version}.alice.json"] = json.dumps(raw).encode()
    with pytest.raises(BadSignature):
        place.client().versions("alice", "ROOT")


@pytest.mark.acceptance(15)
def test_vo_a_signing_vo_bs_path_adds_nothing_to_bs_namespace(place):
    evil = rolefile.encoded(entry_for("ROOT", "666", namespace="bob"))
    edit(place, "alice", lambda role: role.targets.update({evil.path: rolefile.target_of(evil)}))
    client = place.client()
    assert versions(client, "bob") == ["1"]
    assert versions(client, "alice") == ["1"]
    assert client.names("bob") == ["ROOT"]
    assert [p.id.version for p in place.repository.packages("bob")] == ["1"]
    assert any("not its own" in finding.message for finding in place.repository.check())


@pytest.mark.acceptance(15)
def test_vo_a_cannot_speak_for_b_by_delegating_to_a_role_with_bs_name(place):
    """TUF's own search would load that role; and were it kept under its name, it would be taken for B's."""
    alice = place.keys.named("alice-1").key
    delegation = DelegatedRole("bob", [alice.keyid], 1, terminating=False, paths=["bob/*/*/*/*", "alice/*/*/*/*"])

    client = place.client()
    assert versions(client, "bob") == ["1"]
    with place.repository.shelf.lock():
        role = place.repository._open(place.repository._ceremony(), "alice")
        role.signed.delegations = Delegations({alice.keyid: alice}, {"bob": delegation})
        (signer,) = place.keys.signers([alice.keyid])
        role.sign(signer)
        place.repository.shelf.write("alice", role)
    place.repository.refresh()
    assert versions(client, "bob") == ["1"]
    assert versions(place.client(), "alice") == ["1"]


@pytest.mark.acceptance(15)
def test_a_path_in_the_wrong_bin_or_of_another_name_is_not_found(place):
    good = rolefile.encoded(entry_for("Tool"))
    wrong = good.path.replace("/Tool/", "/Other/")
    target = TargetFile(good.size_bytes, {"sha256": good.sha256}, wrong, {"custom": dict(good.custom)})
    edit(place, "alice", lambda role: role.targets.update({wrong: target}))
    client = place.client()
    assert versions(client, name="Other") == []
    assert client.names("alice") == ["ROOT"]


def test_a_fast_forward_by_a_stolen_online_key_is_undone_by_a_new_one(place):
    stolen = place.keys.named("online").id
    root = place.repository._ceremony().root()
    for role in (SNAPSHOT, TIMESTAMP):
        assert root.roles[role].keyids == [stolen]
    state = ceremony_state(place)
    (signer,) = place.keys.signers([stolen])
    snapshot = Metadata(Snapshot.from_dict(state.snapshot.signed.to_dict()))
    snapshot.signed.version = 10**6
    snapshot.sign(signer)
    timestamp = state.timestamp
    timestamp.signed.version = 10**6
    timestamp.signed.snapshot_meta.version = 10**6
    timestamp.signed.snapshot_meta.length = timestamp.signed.snapshot_meta.hashes = None
    timestamp.sign(signer)
    place.server.answers["metadata/timestamp.json"] = timestamp.to_bytes()
    place.server.answers["metadata/1000000.snapshot.json"] = snapshot.to_bytes()
    assert place.client().refresh().version == 10**6
    place.server.answers.clear()
    with pytest.raises(BadSignature):
        place.client().refresh()
    place.repository.rotate("online", [place.keys.new("online-2").key])
    (place.keys.directory / "online.pem").unlink()
    place.repository = Repository(place.catalogue, type(place.keys)(place.keys.directory))
    place.repository.refresh(is_forced=True)
    assert place.client().refresh().version < 10**6
    assert versions(place.client()) == ["1"]


def test_an_agent_with_the_first_root_follows_every_rotation(place):
    old_client = place.client(state="field")
    old_client.refresh()
    for number in range(2, 5):
        place.repository.rotate("root", [place.keys.new(f"root-{number}{n}").key for n in range(3)])
        place.repository.rotate("targets", [place.keys.new(f"targets-{number}{n}").key for n in range(2)])
        place.repository.rotate("online", [place.keys.new(f"online-{number}").key])
        place.repository.rotate_vo("alice", [place.keys.new(f"alice-{number}0").key])
        place.repository.register([entry_for("ROOT", str(number))])
    assert versions(place.client(state="field")) == ["1", "2", "3", "4"]
    assert versions(place.client(state="new pilot with the first root")) == ["1", "2", "3", "4"]


def test_a_root_that_the_old_keys_did_not_sign_is_refused(place, tmp_path):
    with field_in(tmp_path / "evil", validity=Validity()) as evil:
        evil.repository.rotate("root", [evil.keys.new(f"other-{n}").key for n in range(3)])
        place.server.answers["metadata/2.root.json"] = evil.metadata("2.root.json")
        with pytest.raises(BadSignature, match="root was signed by 0/2 keys"):
            place.client().refresh()


def test_what_a_revoked_key_signs_is_refused(place):
    lost = place.keys.named("alice-1")
    place.repository.rotate_vo("alice", [place.keys.new("alice-2").key])
    version = ceremony_state(place).versions["alice"]
    forged = Metadata.from_bytes(place.metadata(f"{version}.alice.json"))
    (signer,) = place.keys.signers([lost.id])
    forged.sign(signer)
    place.server.answers[f"metadata/{version}.alice.json"] = forged.to_bytes()
    with pytest.raises(BadSignature, match="0 of 1"):
        place.client().versions("alice", "ROOT")


def test_a_revoked_vo_is_gone_and_the_others_stay(place):
    client = place.client()
    assert versions(client, "alice") == ["1"]
    place.repository.revoke_vo("alice")
    assert versions(place.client(), "alice") == []
    assert place.client().namespaces() == ["bob"]
    assert versions(place.client(), "bob") == ["1"]


@pytest.mark.acceptance(17, 19)
def test_a_lying_server_is_not_papered_over_by_the_cache(place):
    """A server that is down leaves the cache in use; one that lies is an attack, and is said so."""
    place.client().versions("alice", "ROOT")
    place.server.answers["metadata/timestamp.json"] = b"{}"
    with pytest.raises(BadSignature):
        place.client().refresh()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_any_metadata_is_refused_or_changes_nothing(place, data):
    number = place.repository.snapshot_version()
    names = ["timestamp.json", f"{number}.snapshot.json", "3.targets.json", "2.alice.json"]
    name = data.draw(st.sampled_from(names))
    original = place.metadata(name)
    start = data.draw(st.integers(0, len(original)))
    length = data.draw(st.integers(0, 40))
    changed = original[:start] + data.draw(st.binary(max_size=40)) + original[start + length :]
    place.server.answers = {f"metadata/{name}": changed}
    try:
        client = place.client(state=f"fuzz{time.monotonic_ns()}")
        found = versions(client)
    except (TrustError, SupplyError) as error:
        assert "\n" not in str(error)
        return
    assert found == ["1"]
