"""Web server, tracker, seeder and half of the peers are the attacker's: jobs run right software or none.

Everything is real: `jobagent run` as a site starts it, HTTP, and peers of libtorrent.  What the attacker serves is
made with the project's own tools, with keys of his own, so that it is as good a forgery as one can make.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from jobagent import bencode
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.packaging import torrents
from jobagent.errors import BadSignature, DigestMismatch
from jobagent.events import Events
from jobagent.testing.world import PASSPHRASE, Node, World
from jobagent_catalogue.client import SignedCatalogue
from jobagent_catalogue.settings import CatalogueSettings
from tests.catalogue_field import Server
from tests.swarm_field import Agent, Published, address, agents
from tests.swarm_hostile import CorruptPeer

pytestmark = pytest.mark.swarm
JOBS = 2
BULK = random.Random(7).randbytes(600_000)
RIGHT = "#!/bin/sh\necho right software\n"
WRONG = "#!/bin/sh\necho WRONG SOFTWARE\n"
QUICK = 'encryption = "off"\nno_peer_timeout_s = 4\nstall_timeout_s = 4\nweb_seed_after_s = 1\n'
PATIENT = 'encryption = "off"\nweb_seed_after_s = 1\n'


@dataclass(slots=True)
class Stage:
    """The VO's honest world, which serves nothing, and the attacker's, who owns all servers."""

    honest: World
    evil: World
    published: Published


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    honest = World(tmp_path_factory.mktemp("honest"), vos=("alice",))
    evil = World(tmp_path_factory.mktemp("evil"), vos=("alice",))
    for world, tool in ((honest, RIGHT), (evil, WRONG)):
        world.publish("Tool", {"bin/tool": tool, "share/bulk": BULK})
    catalogue = SignedCatalogue(
        CatalogueSettings(urls=(honest.catalogue.as_uri(),), root=honest.root), honest.directory / "state", Events()
    )
    (package,) = catalogue.versions("alice", "Tool")
    (archive,) = (honest.catalogue / "archives" / package.key).iterdir()
    return Stage(honest, evil, Published(package, catalogue.torrent(package.archive), archive))


class Intruder:
    """The attacker's servers, over a directory that looks like the catalogue."""

    def __init__(self, stage: Stage, directory: Path, honest_peers: list[Agent]) -> None:
        self.stage = stage
        self.directory = directory / "served"
        shutil.copytree(stage.honest.catalogue, self.directory)
        archive = stage.published.package.archive
        pieces = -(-archive.size_bytes // torrents.piece_size_for(archive.size_bytes))
        self.peers = [CorruptPeer(address(), pieces, archive.infohash_v2) for _ in range(max(2, len(honest_peers)))]
        listed = [p.address for p in self.peers] + [(a.address, a.swarm.port()) for a in honest_peers]
        self.server = Server(self.directory)
        self.server.answers["announce"] = self._answer(listed)
        self.server.start()

    def replace_archives(self) -> None:
        """Serve, under the right names, the attacker's archive."""
        (evil,) = (self.stage.evil.catalogue / "archives").glob("*/*")
        for path in self.directory.glob("archives/*/*"):
            path.unlink()
            path.write_bytes(evil.read_bytes())

    def replace_metadata(self, pattern: str) -> None:
        """Serve the attacker's metadata under the names of the honest ones."""
        for path in (self.stage.evil.catalogue / "metadata").glob(pattern):
            shutil.copy(path, self.directory / "metadata" / path.name)

    def replace_torrents(self) -> None:
        """Serve, under the right name, the torrent of the attacker's archive."""
        (evil,) = (self.stage.evil.catalogue / "torrents").iterdir()
        for path in self.directory.glob("torrents/*"):
            path.unlink()
            path.write_bytes(evil.read_bytes())

    def sign_with_the_stolen_online_key(self) -> None:
        """Vouch for the files that are served with the key that lies on the central host."""
        keys = KeyStore(self.stage.honest.keys, passphrase=lambda name: PASSPHRASE.encode())
        (signer,) = keys.signers([keys.named("online").id])
        metadata = self.directory / "metadata"
        timestamp = Metadata.from_file(str(metadata / "timestamp.json"))
        snapshot = Metadata.from_file(str(metadata / f"{timestamp.signed.snapshot_meta.version}.snapshot.json"))
        for meta in (*snapshot.signed.meta.values(), timestamp.signed.snapshot_meta):
            meta.hashes = meta.length = None
        for role in (snapshot, timestamp):
            role.signed.version += 1
        timestamp.signed.snapshot_meta.version = snapshot.signed.version
        for role in (snapshot, timestamp):
            role.sign(signer)
        snapshot.to_file(str(metadata / f"{snapshot.signed.version}.snapshot.json"))
        timestamp.to_file(str(metadata / "timestamp.json"))

    def close(self) -> None:
        """End all servers."""
        self.server.stop()
        for peer in self.peers:
            peer.close()

    @staticmethod
    def _answer(listed: list[tuple[str, int]]) -> bytes:
        peers = b"".join(socket.inet_aton(host) + port.to_bytes(2, "big") for host, port in listed)
        return bencode.encode({b"interval": 60, b"min interval": 1, b"peers": peers})


@contextlib.contextmanager
def intruder(stage: Stage, directory: Path, honest_count: int) -> Iterator[Intruder]:
    """Run the attacker's servers beside so many honest peers that have the package."""
    with agents(directory, honest_count, encryption="off") as honest:
        for agent in honest:
            agent.swarm.seed(stage.published.package, stage.published.path, stage.published.torrent)
        servers = Intruder(stage, directory, honest)
        try:
            yield servers
        finally:
            servers.close()


def jobs(stage: Stage, servers: Intruder, directory: Path, swarm: str = QUICK) -> list[tuple[int, str, str]]:
    """Run jobs at the same time on nodes of their own that know the attacker's URL and the honest root."""
    (directory / "job.jdl").write_text('Executable = "tool";\nPackages = {"Tool::1"};\n')
    nodes = [stage.honest.node(catalogue=servers.server.url, sections={"swarm": swarm}) for _ in range(JOBS)]

    def run(node: Node) -> tuple[int, str, str]:
        done = node.call("run", directory / "job.jdl", "--output", node.scratch.parent / "out")
        assert node.leftovers() == []
        assert "WRONG" not in done.stdout and "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(run, nodes))


def test_beside_the_attackers_peers_honest_ones_deliver_the_right_software(stage: Stage, tmp_path: Path) -> None:
    with intruder(stage, tmp_path, 2) as servers:
        servers.replace_archives()
        for code, said, errors in jobs(stage, servers, tmp_path, PATIENT):
            assert (code, said) == (0, "right software\n"), errors
        assert "announce" in servers.server.requests
        assert sum(peer.blocks_sent for peer in servers.peers) > 0


def test_where_only_the_attacker_delivers_no_job_runs(stage: Stage, tmp_path: Path) -> None:
    with intruder(stage, tmp_path, 0) as servers:
        servers.replace_archives()
        for code, said, errors in jobs(stage, servers, tmp_path):
            assert (code, said) == (DigestMismatch.exit_code, ""), errors
            assert "not what was signed" in errors
        assert sum(peer.blocks_sent for peer in servers.peers) > 0


@pytest.mark.parametrize(
    ("metadata", "code"),
    [("*.json", BadSignature.exit_code), ("*alice*.json", BadSignature.exit_code)],
    ids=["a whole catalogue of his own", "the role of the VO, vouched for with the stolen online key"],
)
def test_what_the_attacker_signs_runs_nowhere(stage: Stage, tmp_path: Path, metadata: str, code: int) -> None:
    with intruder(stage, tmp_path, 1) as servers:
        servers.replace_metadata(metadata)
        servers.replace_archives()
        if metadata != "*.json":
            servers.sign_with_the_stolen_online_key()
        for returned, said, errors in jobs(stage, servers, tmp_path):
            assert (returned, said) == (code, ""), errors
            assert "signed by" in errors


def test_a_torrent_of_other_bytes_is_not_joined(stage: Stage, tmp_path: Path) -> None:
    with intruder(stage, tmp_path, 1) as servers:
        servers.replace_torrents()
        servers.replace_archives()
        for code, said, errors in jobs(stage, servers, tmp_path):
            assert code != 0 and said == "", errors
            assert "torrent is not" in errors
        assert sum(peer.blocks_sent for peer in servers.peers) == 0
