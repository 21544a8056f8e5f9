"""A node for tests of the node service: the real pipeline, cache and unpacker over a catalogue and a transport that
are a directory.

The directory is the test's hold on everything: `packages.pickle` is the catalogue, `archives/` the web, `fetches` one
line per download, `pace` seconds to wait at each chunk, `outage` present where nothing can be fetched.  The same node
runs in the test's process or as a process of its own (`python -m tests.node_field DIRECTORY`).
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jobagent_archives
import jobagent_environment
import jobagent_sharedcache
from jobagent.central.packaging.pack import pack
from jobagent.config import load as load_config
from jobagent.contracts import Context, Freshness, Order
from jobagent.errors import CatalogueUnreachable, SupplyError
from jobagent.events import Events
from jobagent.hookspecs import hookimpl
from jobagent.job.kit import Kit, assemble
from jobagent.model import Archive, Blob, Package, PackageId, PackageState, Traffic
from jobagent.node import client
from jobagent.node.service import NodeService
from jobagent.pluginmanager import Plugins
from jobagent_catalogue.verifier import DigestVerifier

CHUNK_BYTES = 1 << 16
START_TIMEOUT_S = 30.0


class Field:
    """The directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "node.sock"
        self.cache = directory / "cache"
        self.configuration = directory / "jobagent.toml"

    def make(self, **sections: str) -> None:
        """Lay it out; `sections` are lines of TOML by section."""
        (self.directory / "archives").mkdir(parents=True)
        (self.directory / "state").mkdir()
        lines = {
            "site": f'scratch = "{self.directory}"\n',
            "job": 'vo = "test"\n',
            "node": f'socket = "{self.socket}"\n',
            "sharedcache": f'root = "{self.cache}"\n',
        }
        for section, text in sections.items():
            lines[section] = lines.get(section, "") + text
        self.configuration.write_text("".join(f"[{name}]\n{text}" for name, text in lines.items()))
        self._write([])

    # --- the supply

    def publish(
        self, name: str, files: Mapping[str, bytes], *, version: str = "1", namespace: str = "test", **fields: object
    ) -> Package:
        """Put a package into the catalogue."""
        tree = self.directory / "trees" / f"{namespace}-{name}-{version}"
        for path, content in files.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(0o755 if path.startswith("bin/") else 0o644)
        target = self.directory / "archives" / f"{namespace}-{name}-{version}"
        packed = pack(tree, target)
        digest = packed.archive.sha256
        archive = Archive(f"{name}.tar.zst", "tar.zst", digest, packed.archive.size_bytes, digest[:40], digest)
        package_id = PackageId(namespace, name, version)
        package = Package(package_id, "any", archive, packed.tree, len(self.packages()), **fields)  # type: ignore[arg-type]
        os.replace(target, self.directory / "archives" / digest)
        self._write([*self.packages(), package])
        return package

    def ban(self, package: Package) -> None:
        """Have a package banned by its VO."""
        banned = replace(package, state=PackageState.BANNED, reason="test")
        self._write([banned if p.id == package.id else p for p in self.packages()])

    def packages(self) -> list[Package]:
        """What the catalogue has."""
        path = self.directory / "packages.pickle"
        return list(pickle.loads(path.read_bytes())) if path.exists() else []

    def fetches(self) -> list[str]:
        """Digests that were downloaded, in order."""
        path = self.directory / "fetches"
        return path.read_text().split() if path.exists() else []

    def set_pace(self, seconds: float) -> None:
        """Wait so long at each chunk of a download."""
        (self.directory / "pace").write_text(str(seconds))

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Let nothing be fetched for a while."""
        (self.directory / "outage").touch()
        yield
        (self.directory / "outage").unlink()

    def _write(self, packages: Sequence[Package]) -> None:
        temporary = self.directory / "packages.tmp"
        temporary.write_bytes(pickle.dumps(list(packages)))
        temporary.rename(self.directory / "packages.pickle")

    # --- the node

    def kit(self) -> Kit:
        """Assemble a kit as `jobagent node` does, with the plugins of this field."""
        config = load_config(self.configuration)
        plugins = Plugins(config)
        plugins.register(jobagent_sharedcache, "sharedcache")
        plugins.register(jobagent_archives, "archives")
        plugins.register(jobagent_environment, "environment")
        plugins.register(FieldPlugin(self.directory), "field")
        plugins.declare_settings()
        return assemble(config, state=self.directory / "state", events=Events(), plugins=plugins)

    @contextlib.contextmanager
    def service(self) -> Iterator[NodeService]:
        """Run the node service in this process."""
        service = NodeService(self.kit(), self.socket)
        with contextlib.closing(service):
            service.start()
            yield service

    def start(self) -> subprocess.Popen[bytes]:
        """Start the node service as a process and return once it answers; the caller ends it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.node_field", str(self.directory)], cwd=Path(__file__).parents[1]
        )
        client.ask(str(self.socket), "hello", wait_for_service_s=START_TIMEOUT_S)
        return process

    def ask(self, operation: str, **arguments: object) -> dict[str, object]:
        """Ask the service."""
        return client.ask(str(self.socket), operation, arguments)


class FieldPlugin:
    """Catalogue, transport and verifier over the field's directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @hookimpl
    def jobagent_catalogues(self, context: Context) -> list[DirectoryCatalogue]:
        return [DirectoryCatalogue(self._directory)]

    @hookimpl
    def jobagent_transports(self, context: Context) -> list[DirectoryTransport]:
        return [DirectoryTransport(self._directory)]

    @hookimpl
    def jobagent_verifiers(self, context: Context) -> list[DigestVerifier]:
        return [DigestVerifier()]


class DirectoryCatalogue:
    """What `packages.pickle` had at the last refresh."""

    def __init__(self, directory: Path) -> None:
        self._field = Field(directory)
        self._packages: list[Package] = []
        self._version = 1
        self.refreshes = 0

    def refresh(self, *, is_forced: bool = False) -> Freshness:
        if (self._field.directory / "unreachable").exists():
            raise CatalogueUnreachable("the field's catalogue is unreachable")
        before, self._packages = self._packages, self._field.packages()
        self._version += self._packages != before
        self.refreshes += 1
        return Freshness(self._version, 4102444800.0, "directory")

    def namespaces(self) -> Sequence[str]:
        return sorted({p.id.namespace for p in self._packages})

    def names(self, namespace: str) -> Sequence[str]:
        return sorted({p.id.name for p in self._packages if p.id.namespace == namespace})

    def versions(self, namespace: str, name: str) -> Sequence[Package]:
        return [p for p in self._packages if (p.id.namespace, p.id.name) == (namespace, name)]

    def torrent(self, archive: Archive) -> bytes:
        raise SupplyError("the field has no torrents")

    def blob(self, blob: Blob) -> bytes:
        raise SupplyError("the field has no objects")

    def urls(self, package: Package) -> Sequence[str]:
        return ()


class DirectoryTransport:
    """Copies from `archives/`, resuming what is there, at the field's pace."""

    name = "directory"
    rank = 1

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def can_fetch(self, order: Order) -> bool:
        return True

    def fetch(self, order: Order) -> Traffic:
        if (self._directory / "outage").exists():
            raise SupplyError("the field has an outage")
        with (self._directory / "fetches").open("a") as log:
            log.write(order.package.key + "\n")
        pace = self._directory / "pace"
        fetched = 0
        with (
            (self._directory / "archives" / order.package.key).open("rb") as source,
            order.target.open("ab") as target,
        ):
            source.seek(target.tell())
            while chunk := source.read(CHUNK_BYTES):
                if order.cancelled.wait(float(pace.read_text()) if pace.exists() else 0.0):
                    raise SupplyError("cancelled")
                target.write(chunk)
                target.flush()
                fetched += len(chunk)
                order.progress(target.tell())
        return Traffic(neighbour_bytes=fetched)

    def close(self) -> None:
        pass


def main(directory: Path) -> None:
    """Run the service until a signal."""
    field = Field(directory)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with field.service() as service:
        threading.Thread(target=lambda: (ended.wait(), service.stop()), daemon=True).start()
        service.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
