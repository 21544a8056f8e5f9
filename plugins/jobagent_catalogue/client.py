"""The catalogue as an agent sees it: fresh enough, verified, and quick when nothing has changed.

A look-up first takes what a young receipt vouches for; else it brings the top of the chain up to date from the first
mirror that can be believed, and loads the role of the VO, and of its bins only the one that is asked for.  Nothing
in here decides about signatures: that is `chain`, imported when it is needed.
"""

from __future__ import annotations

import hashlib
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jobagent.plugin import (
    Archive,
    Blob,
    CatalogueUnreachable,
    ConfigurationError,
    DigestMismatch,
    Events,
    Freshness,
    Package,
    SupplyError,
    entry,
)
from jobagent_catalogue import receipt as receipts
from jobagent_catalogue.receipt import Receipt
from jobagent_catalogue.role import Role, Target
from jobagent_catalogue.settings import CatalogueSettings
from jobagent_catalogue.statelock import StateLock
from jobagent_catalogue.web import Web, WebError

MAX_TORRENT_BYTES = 10 * 1024 * 1024
MAX_ANCHOR_BYTES = 512_000
NEGATIVE_AGE_S = 2.0  # a "no such package" that is older than this is checked with a mirror before it is believed
LOOKUP_AGE_S = 5.0  # look-ups after a refresh belong to it, however short the refresh interval is


LOOKUP_ATTEMPTS = 4

T = TypeVar("T")


class _StateChanged(Exception):
    """What is kept is not what the receipt in hand is about: another process was here, or a file is damaged."""


class SignedCatalogue:
    """A catalogue on one or several mirrors.  Thread-safe; processes may share `state`."""

    def __init__(
        self,
        settings: CatalogueSettings,
        state: Path,
        events: Events,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._state = state
        self._events = events
        self._clock = clock
        self._web = Web(settings, clock=clock)
        self._lock = threading.RLock()
        self._receipt: Receipt | None = None
        self._roles: dict[str, Role] = {}
        self._warned: set[str] = set()
        self._anchor: bytes | None = None
        self._mirrors = tuple(_checked_url(url) for url in settings.urls)

    # The protocol

    def refresh(self, *, is_forced: bool = False) -> Freshness:
        """Bring the metadata up to date; what was confirmed less than `refresh_interval_s` ago is, unless forced.

        Raises:
            CatalogueUnreachable: No mirror answers and nothing valid is cached.
            CatalogueExpired: The metadata are past their expiry.
            BadSignature: Every mirror that answers is refused; the message names role and reason.
            ConfigurationError: No root, or no such URL.
            SiteError: This node's clock is far behind.
        """
        with self._lock:
            receipt = self._fresh_receipt(is_forced=is_forced)
            return Freshness(
                version=receipt.version,
                expires_s=receipt.expires_s,
                source=receipt.source,
                is_stale=receipt.is_stale,
            )

    def namespaces(self) -> Sequence[str]:
        """All VOs of the catalogue."""
        return self._look_up(lambda: sorted(self._top().delegations))

    def names(self, namespace: str) -> Sequence[str]:
        """All package names of a VO; loads all of its roles."""
        return self._look_up(
            lambda: sorted({name for role in self._roles_of(namespace) for name in role.names(namespace)})
        )

    def versions(self, namespace: str, name: str) -> Sequence[Package]:
        """All versions of a package; loads only the role that may hold them."""
        try:
            prefix = entry.name_prefix(namespace, name)
        except entry.EntryError:
            return ()
        with self._lock:
            found = self._look_up(lambda: self._versions(namespace, prefix))
            if not found and self._clock() - self._current().checked_s > NEGATIVE_AGE_S:
                self._fresh_receipt(is_forced=True)
                found = self._look_up(lambda: self._versions(namespace, prefix))
            return found

    def torrent(self, archive: Archive) -> bytes:
        """The torrent of an archive; kept, as it never changes."""
        kept = self._directory() / "torrents" / f"{archive.infohash_v2}.torrent"

        def check(data: bytes) -> None:
            entry.check_torrent(data, archive)

        try:
            data = kept.read_bytes()
            check(data)
            return data
        except (OSError, ValueError):
            data = self._fetch_any(entry.torrent_path(archive), MAX_TORRENT_BYTES, check)
        kept.parent.mkdir(exist_ok=True)
        receipts.replace(kept, data)
        return data

    def blob(self, blob: Blob) -> bytes:
        """An object of the catalogue, checked against its digest."""
        if blob.size_bytes > self._settings.max_object_bytes:
            raise SupplyError(
                f"object {blob.sha256[:16]}… has {blob.size_bytes} bytes, at most "
                f"{self._settings.max_object_bytes} are read",
                remedy="raise [catalogue] max_object_bytes",
            )

        def check(data: bytes) -> None:
            if len(data) != blob.size_bytes or hashlib.sha256(data).hexdigest() != blob.sha256:
                raise ValueError(f"object {blob.sha256[:16]}… has another digest")

        return self._fetch_any(entry.object_path(blob), blob.size_bytes, check)

    def urls(self, package: Package) -> Sequence[str]:
        """Alternate PFNs: the signed ones, then the mirrors."""
        path = urllib.parse.quote(entry.archive_path(package.archive))
        return (*package.pfns, *(mirror + path for mirror in self._mirrors))

    # Roles

    def _look_up(self, look: Callable[[], T]) -> T:
        """Return what `look` finds in one state of the catalogue, starting anew where the state changes under it."""
        with self._lock:
            for attempt in range(LOOKUP_ATTEMPTS):
                try:
                    return look()
                except _StateChanged:
                    self._receipt = None
                    self._roles.clear()
                    if attempt:  # not another process, then: a kept file is damaged, which a refresh heals
                        self._fresh_receipt(is_forced=True)
            raise CatalogueUnreachable(
                f"the kept metadata in {self._directory()} change while they are read", remedy="remove that directory"
            )

    def _versions(self, namespace: str, prefix: str) -> list[Package]:
        entries = [e for role in self._roles_of(namespace, path=prefix + "0/0") for e in role.entries(prefix)]
        return [package for path, target in entries if (package := self._decode(path, target)) is not None]

    def _decode(self, path: str, target: Target) -> Package | None:
        """Return the package of a signed entry; one that breaks the format is left out with a warning."""
        custom = target.get("custom")
        signed = entry.Entry(
            path, target["length"], target["hashes"].get("sha256", ""), custom if isinstance(custom, dict) else {}
        )
        try:
            return entry.decode(signed)
        except entry.EntryError as error:
            if path not in self._warned:
                self._warned.add(path)
                self._warn(f"entry {path} of the catalogue is left out: {error}")
            return None

    def _roles_of(self, namespace: str, path: str = "") -> Iterator[Role]:
        """Yield the role of a namespace and its bins; with `path`, only those that may speak about it."""
        if not self._top().delegates(namespace, path or f"{namespace}/0/0/0/0"):
            return
        role = self._role(namespace, above="targets")
        if role is None:
            return
        yield role
        for name in role.bins(namespace, path):
            child = self._role(name, above=namespace)
            if child is not None:
                yield child

    def _top(self) -> Role:
        receipt = self._current()
        if "targets" not in self._roles:
            data = receipts.read_verified(self._directory(), "metadata/targets.json", receipt)
            if data is None:
                raise _StateChanged
            self._roles["targets"] = Role.parse(data)
        return self._roles["targets"]

    def _role(self, role: str, above: str) -> Role | None:
        """Return a delegated role, verified; `None` where the snapshot does not have it yet."""
        receipt = self._current()
        if role not in receipt.versions:
            return None
        if role not in self._roles or not self._is_valid(receipt, role):
            data = receipts.read_verified(self._directory(), f"roles/{role}.json", receipt)
            if data is None or not self._is_valid(receipt, role):
                data = self._load_role(role, above, receipt)
            self._roles[role] = Role.parse(data)
        return self._roles[role]

    def _load_role(self, role: str, above: str, receipt: Receipt) -> bytes:
        from jobagent_catalogue import loading

        path = f"metadata/{above}.json" if above == "targets" else f"roles/{above}.json"
        with self._state_lock():
            latest = receipts.load(self._directory()) or receipt
            delegator = receipts.read_verified(self._directory(), path, receipt)
            if delegator is None or latest.version != receipt.version:
                raise _StateChanged
            data, expires_s = loading.load_role(
                self._loader(), delegator, role, version=receipt.versions[role], preferred=receipt.source
            )
            receipts.replace(self._directory() / f"roles/{role}.json", data)
            self._receipt = latest.with_file(f"roles/{role}.json", data, role, expires_s)
            receipts.save(self._directory(), self._receipt)
        return data

    # Freshness

    def _current(self) -> Receipt:
        """Return the receipt for a look-up: the one of the last refresh, or a fresh one."""
        if self._receipt is not None and self._is_young(self._receipt, LOOKUP_AGE_S):
            return self._receipt
        return self._fresh_receipt(is_forced=False)

    def _fresh_receipt(self, *, is_forced: bool) -> Receipt:
        """Return a receipt that is young enough, asking a mirror where there is none."""
        asked_s = self._clock()
        if not is_forced and self._receipt is not None and self._is_young(self._receipt):
            return self._receipt
        if not is_forced and (kept := receipts.load(self._directory())) is not None and self._is_young(kept):
            return self._take(kept)
        with self._state_lock():
            kept = receipts.load(self._directory())
            if kept is not None and self._is_young(kept) and (not is_forced or kept.verified_s > asked_s):
                return self._take(kept)  # another process or thread asked while this one waited
            return self._take(self._ask_mirrors(kept))

    def _ask_mirrors(self, kept: Receipt | None) -> Receipt:
        from jobagent_catalogue import loading

        receipt = loading.update(self._loader(), kept)
        receipts.save(self._directory(), receipt)
        return receipt

    def _is_young(self, receipt: Receipt, at_least_s: float = 0.0) -> bool:
        now_s = self._clock()
        age_s = now_s - receipt.checked_s
        if not 0 <= age_s < max(self._settings.refresh_interval_s, at_least_s):
            return False
        return now_s < receipt.expires_s + self._grace_s(receipt)

    def _is_valid(self, receipt: Receipt, role: str) -> bool:
        return self._clock() < receipt.expires.get(role, 0.0) + self._grace_s(receipt)

    def _grace_s(self, receipt: Receipt) -> float:
        """The site's grace is for the time when no mirror answers, and not for one that serves what has expired."""
        return self._settings.grace_s if receipt.is_stale else 0.0

    def _take(self, receipt: Receipt) -> Receipt:
        if self._receipt is None or self._receipt.files != receipt.files:
            self._roles.clear()
        self._receipt = receipt
        return receipt

    # Files

    def _fetch_any(self, path: str, max_bytes: int, check: Callable[[bytes], None]) -> bytes:
        """Return a file from the first mirror that has the right one.

        Raises:
            DigestMismatch: A mirror has another file, and none has the right one.
            SupplyError: No mirror has it.
        """
        wrong: list[str] = []
        missing: list[str] = []
        for mirror in self._mirrors:
            try:
                data = self._web.fetch(mirror + path, max_bytes=max_bytes)
                check(data)
                return data
            except WebError as error:
                missing.append(str(error))
            except ValueError as error:
                wrong.append(f"{mirror}: {error}")
                self._warn(f"{mirror} serves a wrong {path}: {error}")
        if wrong:
            raise DigestMismatch(
                "; ".join(wrong), remedy="tell the catalogue's manager: somebody changes files there"
            )
        raise SupplyError("; ".join(missing), remedy="see whether the catalogue's web server has the file")

    def _loader(self) -> Any:
        from jobagent_catalogue import loading

        return loading.Loader(
            settings=self._settings,
            mirrors=self._mirrors,
            directory=self._directory(),
            anchor=self._read_anchor(),
            web=self._web,
            clock=self._clock,
            warn=self._warn,
        )

    def _state_lock(self) -> StateLock:
        timeout_s = 6 * self._settings.timeout_s * max(1, len(self._mirrors))
        return StateLock(self._directory() / "lock", timeout_s=timeout_s)

    def _directory(self) -> Path:
        """The directory for this root: catalogues do not mix when the site changes the anchor."""
        directory = self._state / hashlib.sha256(self._read_anchor()).hexdigest()[:16]
        if not (directory / "roles").is_dir():
            self._state.mkdir(parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            for name in ("metadata", "roles"):
                (directory / name).mkdir(exist_ok=True)
        return directory

    def _read_anchor(self) -> bytes:
        if self._anchor is None:
            path = self._settings.root
            if path == Path():
                raise ConfigurationError("no root of trust is configured", remedy="set [catalogue] root = FILE")
            try:
                self._anchor = path.read_bytes()[:MAX_ANCHOR_BYTES]
            except OSError as error:
                raise ConfigurationError(f"cannot read [catalogue] root {path}: {error.strerror}") from error
        return self._anchor

    def _warn(self, message: str) -> None:
        self._events.emit("warning", message=message)


def _checked_url(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https", "file"} or parts.query or parts.fragment:
        raise ConfigurationError(f"[catalogue] urls has {url!r}", remedy="http://, https:// or file:// and a path")
    return url if url.endswith("/") else url + "/"
