"""Announce tokens, from the command that issues them to the swarm that they open: real peers, a real tracker."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from jobagent.central.services import tokens
from jobagent.central.services.settings import CentralSettings
from jobagent.central.services.tracker import Policy
from jobagent.cli import main
from jobagent.errors import ConfigurationError, SupplyError
from tests.swarm_field import Central, agents, central, wait_until

pytestmark = pytest.mark.swarm


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with keys of two VOs for announce tokens."""
    monkeypatch.setenv("JOBAGENT_KEYS", str(tmp_path / "keys"))
    for vo in ("alice", "atlas"):
        assert main.main(["keys", "new", vo, "--no-passphrase"]) == 0
    return tmp_path / "keys"


def issue(path: Path, *options: str, vo: str = "alice", key: str = "alice") -> Path:
    """Issue a token into a file; replaces one that is there."""
    assert main.main(["keys", "announce", key, "--vo", vo, "--output", str(path), *options]) == 0
    return path


def with_keys(services: Central, keys: Path) -> None:
    services.services.token_keys = {  # type: ignore[misc]
        vo: load_pem_public_key((keys / f"{vo}.pub").read_bytes()) for vo in ("alice", "atlas")
    }


def test_a_token_says_what_was_asked_for_and_only_its_owner_reads_it(
    keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = issue(tmp_path / "token", "--site", "CERN", "--hours", "2", vo="VO_ALICE")
    token = path.read_text().strip()
    assert path.stat().st_mode & 0o777 == 0o600
    assert token not in capsys.readouterr().out
    public = load_pem_public_key((keys / "alice.pub").read_bytes())
    claims = tokens.verify(token, {"alice": public}, now_s=time.time())  # type: ignore[dict-item]
    assert (claims.namespace, claims.site) == ("alice", "CERN")
    assert 7100 < claims.expires_s - time.time() <= 7200


@pytest.mark.parametrize("hours", ["0", "-1", "169", "nan"])
def test_a_token_for_no_time_or_more_than_a_week_is_not_issued(
    keys: Path, hours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["keys", "announce", "alice", "--vo", "alice", f"--hours={hours}"]) == 2
    assert "give at most 168" in capsys.readouterr().err


@pytest.mark.acceptance(37)
def test_a_bearer_joins_the_swarm_and_others_are_not_listed(keys: Path, tmp_path: Path) -> None:
    good = issue(tmp_path / "good")
    foreign = issue(tmp_path / "foreign", vo="atlas", key="atlas")
    forged = issue(tmp_path / "forged", vo="alice", key="atlas")
    with central(tmp_path, policy=Policy(needs_token=True)) as services:
        with_keys(services, keys)
        published = services.publish(size_bytes=200_000)
        quick = {"no_peer_timeout_s": 2.0, "web_seed_after_s": 0.0}
        for path, reason in (
            (Path(), "announce token is missing"),
            (foreign, "the token is for VO atlas, the package belongs to alice"),
            (forged, "announce token is not signed by its VO"),
        ):
            with agents(tmp_path, 1, services.url, token_file=str(path), **quick) as (agent,):
                with pytest.raises(SupplyError, match=reason) as caught:
                    agent.swarm.fetch(agent.order(published))
                secret = path.read_text().strip() if path != Path() else "k="
                assert secret not in str(caught.value)
            assert services.tracker.peer_count == 0
        with agents(tmp_path, 1, services.url, token_file=str(good)) as (agent,):
            agent.swarm.fetch(agent.order(published))
            assert agent.has(published)
            assert services.tracker.peer_count == 1


def test_a_token_that_is_replaced_is_used_by_a_service_that_runs(keys: Path, tmp_path: Path) -> None:
    path = issue(tmp_path / "token", vo="atlas", key="atlas")
    with central(tmp_path, policy=Policy(needs_token=True)) as services:
        with_keys(services, keys)
        published = services.publish(size_bytes=200_000)
        with (
            agents(tmp_path, 1, services.url, token_file=str(path), web_seed_after_s=0.0) as (agent,),
            ThreadPoolExecutor(1) as pool,
        ):
            fetching = pool.submit(agent.swarm.fetch, agent.order(published))
            wait_until(lambda: services.tracker.refusals > 0)
            issue(path)
            fetching.result(30)
            assert agent.has(published)


@pytest.mark.acceptance(37)
def test_a_tracker_that_needs_tokens_and_has_no_keys_admits_nobody(keys: Path, tmp_path: Path) -> None:
    token = issue(tmp_path / "token")
    with central(tmp_path, policy=Policy(needs_token=True)) as services:
        published = services.publish(size_bytes=20_000)
        with (
            agents(tmp_path, 1, services.url, token_file=str(token), no_peer_timeout_s=1.0) as (agent,),
            pytest.raises(SupplyError, match="announce token is of an unknown VO"),
        ):
            agent.swarm.fetch(agent.order(published))
    for wrong in ({"needs_token": True}, {"needs_site": True}):
        with pytest.raises(ConfigurationError, match="without"):
            CentralSettings(**wrong).policy()  # type: ignore[arg-type]


def test_no_token_is_on_the_command_line_of_anything(keys: Path, tmp_path: Path) -> None:
    token = issue(tmp_path / "token").read_text().strip()
    with (
        central(tmp_path) as services,
        agents(tmp_path, 1, services.url, token_file=str(tmp_path / "token")) as (agent,),
    ):
        published = services.publish(size_bytes=20_000)
        agent.swarm.fetch(agent.order(published))
        seen = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if os.access(p, os.R_OK)]
    assert not any(token.encode() in line for line in seen)
