"""Secrets stay where they belong: keys with central services, tokens with the agent, nothing of either elsewhere."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from jobagent.testing.world import Node, World, command

pytestmark = pytest.mark.swarm
PASSPHRASE = "a-passphrase-4711"
TELL = """#!/bin/sh
env
cat /proc/[0-9]*/cmdline | tr '\\0' ' '
tool
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose tracker asks for tokens, with one package and one token."""
    world = World(tmp_path_factory.mktemp("world"), passphrase=PASSPHRASE)
    world.publish("Tool", {"bin/tool": "#!/bin/sh\necho the tool\n"})
    world.call("keys", "new", "announce", "--keys", world.keys)
    token = world.directory / "token"
    world.call("keys", "announce", "announce", "--vo", "alice", "--output", token, "--keys", world.keys)
    return world


def run(node: Node, directory: Path, *, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a job that tells all that its payload sees, with all log lines of the agent."""
    words = ("-vv", "--config", node.configuration, "run", directory / "job.jdl", "--output", directory / "out")
    return subprocess.run(
        command(*words, "--json", directory / "report.json"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(node.scratch), **environment},
    )


def test_neither_token_nor_passphrase_is_in_a_log_a_report_an_environment_or_a_process_list(
    world: World, tmp_path: Path
) -> None:
    settings = tmp_path / "central.toml"
    settings.write_text(f'[central]\ntoken_keys = ["alice={world.keys / "announce.pub"}"]\nneeds_token = true\n')
    token = (world.directory / "token").read_text().strip()
    forged = token[:-12] + "AAAAAAAAAA=="
    (tmp_path / "forged").write_text(forged)
    (tmp_path / "tell.sh").write_text(TELL)
    (tmp_path / "job.jdl").write_text('Executable = "tell.sh";\nPackages = {"Tool::1"};\n')
    world.start_services(settings=settings)
    try:
        swarm = "web_seed_after_s = 0\nno_peer_timeout_s = 2\n"
        bearer = world.node(sections={"swarm": swarm + f'token_file = "{world.directory / "token"}"\n'})
        done = run(bearer, tmp_path, environment={"JOBAGENT_PASSPHRASE": PASSPHRASE})
        report = (tmp_path / "report.json").read_text()
        forger = world.node(sections={"swarm": swarm + f'token_file = "{tmp_path / "forged"}"\n'})
        refused = run(forger, tmp_path, environment={})
        status = str(world.status())
    finally:
        world.stop_services()
    assert (done.returncode, done.stdout[-9:]) == (0, "the tool\n"), done.stderr
    assert '"web_bytes": 0' in report, "the token opened the swarm"
    assert "announce token is not signed by its VO" in refused.stderr
    told = {
        "payload": done.stdout,
        "agent's log": done.stderr,
        "agent's log of a refusal": refused.stderr,
        "report": report,
        "status page": status,
        "services' log": (world.directory / "serve.log").read_text(),
    }
    for place, text in told.items():
        for secret in (token, forged, PASSPHRASE):
            assert secret.rstrip("=") not in text, place


def test_what_is_secret_is_readable_by_its_owner_alone(world: World) -> None:
    private = [p for p in world.keys.iterdir() if p.suffix == ".pem"]
    assert len(private) == 8  # root 3, targets 2, online, alice, announce
    assert all(b"ENCRYPTED" in p.read_bytes() for p in private)
    for path in (*private, world.directory / "token"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(world.keys.stat().st_mode) == 0o700
    for path in world.catalogue.rglob("*"):
        assert not path.stat().st_mode & 0o022, f"{path} can be written by others"
        assert path.is_dir() or b"PRIVATE KEY" not in path.read_bytes(), path
