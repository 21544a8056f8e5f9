"""What the manager of one VO, with all its keys, can do to another on the same tracker, seeder and catalogue."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobagent.central.packaging import torrents
from jobagent.central.services import tokens
from jobagent.central.services.tracker import Policy
from jobagent.cli import main
from jobagent.model import PackageId
from jobagent.testing.catalogue import FakeCatalogue
from tests.catalogue_field import entry_for, field_in
from tests.swarm_field import Central, Published, agents, wait_until

pytestmark = pytest.mark.swarm
SIZE = 300_000


def sign_for_mallory(victim: Published, catalogue: FakeCatalogue, torrent: bytes | None, **archive: object) -> None:
    """Let the VO mallory, the last in the alphabet and so the last word, sign an entry about the victim's archive."""
    package = victim.package
    claimed = dataclasses.replace(package.archive, **archive)  # type: ignore[arg-type]
    evil = dataclasses.replace(package, id=PackageId("mallory", "Copy", "1"), archive=claimed)
    catalogue.add(evil, torrent=torrent)


def same(victim: Published, catalogue: FakeCatalogue, directory: Path) -> None:
    sign_for_mallory(victim, catalogue, victim.torrent)


def another_torrent(victim: Published, catalogue: FakeCatalogue, directory: Path) -> None:
    archive = victim.path.parent / "Copy.tar.zst"
    archive.write_bytes(victim.path.read_bytes())
    made = torrents.create(archive, archive.name)
    names = {"file_name": archive.name, "infohash_v1": made.infohash_v1, "infohash_v2": made.infohash_v2}
    sign_for_mallory(victim, catalogue, made.data, **names)


def another_content(victim: Published, catalogue: FakeCatalogue, directory: Path) -> None:
    sign_for_mallory(victim, catalogue, victim.torrent, sha256="f" * 64)


def the_v1_infohash_alone(victim: Published, catalogue: FakeCatalogue, directory: Path) -> None:
    sign_for_mallory(victim, catalogue, None, sha256="f" * 64, infohash_v2="e" * 64)


CLAIMS: dict[str, Callable[[Published, FakeCatalogue, Path], None]] = {
    "the same archive and torrent": same,
    "another torrent of the same bytes": another_torrent,
    "other bytes for the same torrent": another_content,
    "the v1 infohash for a torrent that is not there": the_v1_infohash_alone,
}


@pytest.mark.acceptance(15)
@pytest.mark.parametrize("claim", CLAIMS)
def test_what_one_vo_signs_about_anothers_archive_takes_nothing_from_that_one(tmp_path: Path, claim: str) -> None:
    """With tokens: who comes first in the catalogue must not matter for who is let into the swarm either."""
    key = Ed25519PrivateKey.generate()
    services = Central(tmp_path, policy=Policy(needs_token=True))
    services.services.token_keys = {"alice": key.public_key()}  # type: ignore[misc]
    victim = services.publish(size_bytes=SIZE)
    CLAIMS[claim](victim, services.catalogue, tmp_path)
    (tmp_path / "token").write_text(tokens.issue(tokens.Claims("alice", int(time.time()) + 600), key))
    services.start()
    try:
        with agents(tmp_path, 2, services.url, token_file=str(tmp_path / "token")) as nodes:
            for agent in nodes:
                traffic = agent.swarm.fetch(agent.order(victim, timeout_s=20))
                assert agent.has(victim) and traffic.web_bytes == 0
            assert services.tracker.peer_count == 2
            wanted = [victim.package.archive.infohash_v1, victim.package.archive.infohash_v2[:40]]
            swarms = {services.watch.tracked()[bytes.fromhex(h)].key for h in wanted}  # type: ignore[index]
            assert len(swarms) == 1
    finally:
        services.stop()


def test_a_ban_by_one_vo_leaves_the_swarm_of_another_with_the_same_bytes(tmp_path: Path) -> None:
    services = Central(tmp_path)
    victim = services.publish(size_bytes=SIZE)
    same(victim, services.catalogue, tmp_path)
    services.start()
    try:
        banned = dataclasses.replace(victim.package, id=PackageId("mallory", "Copy", "1"))
        services.catalogue.add(dataclasses.replace(banned, state=type(banned.state).BANNED, reason="mine"))
        infohash = bytes.fromhex(victim.package.archive.infohash_v1)
        wait_until(lambda: services.watch.tracked()[infohash].namespaces == {"alice"})  # type: ignore[index]
        with agents(tmp_path, 1, services.url) as (agent,):
            agent.swarm.fetch(agent.order(victim))
            assert agent.has(victim)
    finally:
        services.stop()


@pytest.mark.acceptance(15)
@pytest.mark.parametrize(
    "words",
    [
        ("withdraw", "VO_BOB@ROOT::1", "--reason", "x"),
        ("ban", "VO_BOB@ROOT::1", "--reason", "x"),
        ("publish", "--vo", "bob", "--tree", "TREE", "--name", "Tool", "--version", "1"),
        ("vo", "rotate", "bob", "--key", "alice-1"),
        ("vo", "revoke", "bob"),
        ("vo", "add", "carol", "--key", "alice-1"),
        ("catalogue", "renew", "--role", "bob"),
        ("catalogue", "rotate", "--role", "online", "--key", "alice-1"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_with_the_keys_of_one_vo_no_command_changes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with field_in(tmp_path / "field") as place:
        place.repository.register([entry_for("ROOT", namespace="bob"), entry_for("ROOT")])
        own = tmp_path / "keys"
        own.mkdir(mode=0o700)
        for name in ("alice-1.pem", "alice-1.pub"):
            (own / name).write_bytes((place.keys.directory / name).read_bytes())
        (own / "alice-1.pem").chmod(0o600)
        (tmp_path / "TREE" / "bin").mkdir(parents=True)
        (tmp_path / "TREE" / "bin" / "a").write_text("a")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("JOBAGENT_CATALOGUE", str(place.catalogue))
        monkeypatch.setenv("JOBAGENT_KEYS", str(own))
        before = {p.name: p.read_bytes() for p in (place.catalogue / "metadata").glob("*.json")}
        code = main.main(list(words))
        said = capsys.readouterr()
        assert code != 0 or "waits" in said.out, said
        assert "Traceback" not in said.err
        assert {name: place.metadata(name) for name in before} == before  # what is new is named by no snapshot
        assert place.client().namespaces() == ["alice", "bob"]
        assert [(p.id.version, str(p.state)) for p in place.client(state="new").versions("bob", "ROOT")] == [
            ("1", "released")
        ]
