"""Publishing: source → content → archive → manifest, torrent → signed entry.

The sequence stands in `Publisher.publish`.  Whatever is published together becomes visible together: the whole
closure of a wheel, or nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jobagent import entry, environment_policy, manifest
from jobagent.central.catalogue.repository import Repository, Signed
from jobagent.central.packaging import pack, provenance, torrents, updating
from jobagent.central.packaging.content import Content, Given, Source
from jobagent.central.placing import Draft
from jobagent.contracts import ManifestEntry
from jobagent.errors import AlreadyPublished, DiskFull, JobSyntaxError, PublishError
from jobagent.events import Events
from jobagent.model import Archive, Blob, EnvironmentChange, Package, PackageId, PackageSpec, PackageState, is_update

DATA_FORMAT = "file"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+~-]{0,199}")


@dataclass(frozen=True, slots=True)
class Edition:
    """One package to be published: its source, the name and version it gets, and what its publisher adds."""

    source: Source
    name: str
    version: str
    given: Given = Given()


@dataclass(frozen=True, slots=True)
class Published:
    """What came of publishing: entries that are new, entries that were there, and the signature's outcome."""

    new: tuple[Package, ...]
    skipped: tuple[Package, ...]
    signed: Signed | None


class Publisher:
    """Publishes for one VO on one platform."""

    def __init__(
        self,
        repository: Repository,
        namespace: str,
        platform: str,
        events: Events,
        *,
        level: int = pack.DEFAULT_LEVEL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._repository = repository
        self._namespace = namespace
        self._platform = platform
        self._events = events
        self._level = level
        self._clock = clock
        self._known: dict[PackageId, Package] = {}

    def find(self, name: str, version: str) -> Package | None:
        """Return the entry of that name and version, whatever its state."""
        wanted = PackageId(self._namespace, name, version)
        packages = self._repository.packages(self._namespace)
        return next((p for p in packages if p.id == wanted and p.platform == self._platform), None)

    def publish(self, editions: Sequence[Edition], *, skip_existing: bool = False) -> Published:
        """Make and publish all editions that are not published yet, dependencies first.

        With `skip_existing` what has an entry of that name and version is left as it is, without being made again.

        Raises:
            AlreadyPublished: An entry exists; the message says whether with the same content.
            PublishError: An edition cannot be made, or needs a package that the catalogue has not.
        """
        self._known = {p.id: p for p in self._repository.packages() if p.platform == self._platform}
        skipped: list[Package] = []
        drafts: list[Draft] = []
        with tempfile.TemporaryDirectory(prefix="jobagent-publish-") as work:
            for number, edition in enumerate(editions):
                package_id = self._id(edition)
                existing = self._known.get(package_id)
                if existing is not None and skip_existing:
                    skipped.append(existing)
                    self._events.emit("package.skipped", package=str(package_id))
                    continue
                with _storage_errors(package_id):
                    draft, update = self._draft(package_id, edition, Path(work) / str(number))
                if existing is not None:
                    raise _already(existing, draft.package)
                self._known[package_id] = draft.package
                drafts += [draft, update] if update else [draft]
            signed = self._repository.publish(drafts) if drafts else None
        new = tuple(draft.package for draft in drafts if not is_update(draft.package.platform))
        for package in new:
            self._events.emit("package.published", package=str(package.id), digest=package.key)
        return Published(new, tuple(skipped), signed)

    def _draft(self, package_id: PackageId, edition: Edition, work: Path) -> tuple[Draft, Draft | None]:
        """Make one package below `work`, and the update to it from the version before, where that is worth its while.

        The trees are removed again, the archives stay.
        """
        making = work / "making"
        making.mkdir(parents=True)
        with self._events.phase("make", package=str(package_id)):
            content = edition.source.make(making, lambda line: self._warn(package_id, line))
        environment = _checked((*content.environment, *edition.given.environment))
        dependencies = self._dependencies(package_id, (*content.requires, *edition.given.requires))
        archive, entries = self._archive(package_id, content, work)
        torrent = torrents.create(archive.path, archive.name)
        description = edition.given.description or content.description
        licence = edition.given.licence or content.licence
        bill = edition.given.provenance or provenance.bill_of_materials(
            package_id, description, licence, content.origin
        )
        package = Package(
            id=package_id,
            platform=self._platform,
            archive=Archive(
                archive.name, archive.format, archive.blob.sha256, archive.blob.size_bytes,
                torrent.infohash_v1, torrent.infohash_v2,
            ),
            tree=manifest.tree_of(entries),
            published_s=int(self._clock()),
            dependencies=dependencies,
            environment=environment,
            description=_line(description),
            licence=_line(licence),
            pfns=tuple(edition.given.pfns),
            provenance=Blob(hashlib.sha256(bill).hexdigest(), len(bill)),
        )  # fmt: skip
        try:
            entry.encode(package)
        except ValueError as error:
            raise PublishError(f"{package_id} cannot have an entry: {error}") from error
        with self._events.phase("update", package=str(package_id)):
            update = updating.draft(
                package, content.path, entries, list(self._known.values()), self._repository.directory, work
            )
        shutil.rmtree(making)
        objects = (manifest.encode(entries), bill)
        return Draft(package, archive.path, torrent.data, objects, is_ours=not content.is_data), update

    def _archive(
        self, package_id: PackageId, content: Content, work: Path
    ) -> tuple[_ArchiveFile, tuple[ManifestEntry, ...]]:
        if content.is_data:
            data = _checked_data(content.path)
            known = self._known_name(data.blob.sha256)
            if known not in {"", data.name}:
                raise PublishError(f"the catalogue has this data as {known}", remedy=f"publish it as {known}")
            only = ManifestEntry(data.name, "f", 0o644, data.blob.size_bytes, data.blob.sha256)
            return data, (only,)
        making = work / f"{package_id.name}.{pack.FORMAT}"
        task = f"pack {package_id}"

        def progress(done_bytes: int, total_bytes: int) -> None:
            self._events.emit("progress", task=task, done=done_bytes, total=total_bytes)

        with self._events.phase("pack", package=str(package_id)):
            packed = pack.pack(content.path, making, level=self._level, progress=progress)
        # Named by content: two versions or VOs with the same bytes are one torrent, one swarm, one installation.
        name = f"{package_id.name}-{packed.archive.sha256[:12]}.{pack.FORMAT}"
        path = making.rename(work / name)
        return _ArchiveFile(
            path, self._known_name(packed.archive.sha256) or name, pack.FORMAT, packed.archive
        ), packed.entries

    def _known_name(self, sha256: str) -> str:
        """The file name under which the catalogue has an archive already, if it has it."""
        return next((p.archive.file_name for p in self._repository.packages() if p.key == sha256), "")

    def _id(self, edition: Edition) -> PackageId:
        try:
            spec = PackageSpec.parse(f"{edition.name}::{edition.version}")
        except JobSyntaxError as error:
            raise PublishError(error.cause_line, remedy=error.remedy) from error
        return PackageId(self._namespace, spec.name, edition.version)

    def _dependencies(self, package_id: PackageId, specs: Sequence[PackageSpec]) -> tuple[PackageId, ...]:
        """Find what a package needs among what is published and what is about to be."""
        found = [self._dependency(package_id, spec) for spec in specs]
        return tuple(dict.fromkeys(found))

    def _dependency(self, package_id: PackageId, spec: PackageSpec) -> PackageId:
        namespace = spec.namespace or self._namespace
        fitting = [
            p
            for p in self._known.values()
            if (p.id.namespace, p.id.name) == (namespace, spec.name) and spec.version in {None, p.id.version}
        ]
        if spec.version is None:
            fitting = [p for p in fitting if p.state is PackageState.RELEASED]
        if not fitting:
            wanted = replace(spec, namespace=namespace)
            raise PublishError(
                f"{package_id} needs {wanted}, which is not in the catalogue for {self._platform}",
                remedy="publish that first",
            )
        newest = max(fitting, key=lambda p: (p.published_s, p.id.version))
        if newest.state is PackageState.BANNED:
            raise PublishError(f"{package_id} needs {newest.id}, which is banned: {newest.reason}")
        return newest.id

    def _warn(self, package_id: PackageId, line: str) -> None:
        self._events.emit("warning", message=f"{package_id}: {line}")


@contextlib.contextmanager
def _storage_errors(package_id: PackageId) -> Iterator[None]:
    """Say what could not be read or written, instead of ending as an internal error."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(
                f"no room to make {package_id}: {error.strerror}", remedy="set TMPDIR to a larger disk"
            ) from error
        raise PublishError(f"{package_id} cannot be made: {error.strerror} ({error.filename})") from error


@dataclass(frozen=True, slots=True)
class _ArchiveFile:
    path: Path
    name: str
    format: str
    blob: Blob


def _checked_data(path: Path) -> _ArchiveFile:
    if not _FILE_NAME.fullmatch(path.name):
        raise PublishError(
            f"{path.name[:240]!r} cannot be a file of the catalogue", remedy="rename it: A-Z a-z 0-9 _.+~-"
        )
    return _ArchiveFile(path, path.name, DATA_FORMAT, Blob(manifest.hash_file(path), path.stat().st_size))


def _checked(changes: Sequence[EnvironmentChange]) -> tuple[EnvironmentChange, ...]:
    for change in changes:
        if refusal := environment_policy.refusal(change.name, change.value):
            raise PublishError(f"no package may change {change.name}: {refusal}")
    return tuple(dict.fromkeys(changes))


def _already(existing: Package, made: Package) -> AlreadyPublished:
    if existing.key == made.key:
        return AlreadyPublished(f"{existing.id} is already published, same content", remedy="see --skip-existing")
    return AlreadyPublished(
        f"{existing.id} is already published, with other content",
        remedy="packages never change: choose a new version",
    )


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:1000]
