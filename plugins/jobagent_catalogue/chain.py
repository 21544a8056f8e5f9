"""The chain of signatures, from the trusted root to the role of a VO: the one module that knows TUF.

The top-level roles are brought up to date by TUF's own client.  A VO's role, and a bin of it, is verified here by
the same rules (TUF specification 5.6), because the namespace decides which role may speak: TUF's depth-first search
would also follow a VO that delegates to a role with another VO's name.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError, SlowRetrievalError
from tuf.api.metadata import Metadata, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from jobagent_catalogue import web
from jobagent_catalogue.receipt import TOP_LEVEL

LIMITS = UpdaterConfig(
    max_root_rotations=256,
    root_max_length=512_000,  # bytes, as the next three
    timestamp_max_length=16_384,
    snapshot_max_length=2_000_000,
    targets_max_length=5_000_000,
    prefix_targets_with_hash=False,
)

MAX_TARGET_BYTES = 2**40  # no limit but the signed length


class Refused(Exception):
    """A role is not what the chain of signatures asks for; says role, version and reason."""


class Expired(Exception):
    """A role is rightly signed, but past its expiry."""

    def __init__(self, role: str, expires_s: float) -> None:
        super().__init__(f"{role} expired at {_text(expires_s)}")
        self.role = role
        self.expires_s = expires_s


class Fetcher(FetcherInterface):
    """TUF's way to our `Web`; remembers what came last, so that a refusal can be explained."""

    def __init__(self, source: web.Web) -> None:
        self._web = source
        self.last: dict[str, bytes] = {}

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return a metadata file; raises DownloadError."""
        with _as_tuf_errors():
            data = self._web.fetch(url, max_bytes=max_length)
        self.last[role_of_url(url)] = data
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        """Yield a target file, whose signed length TUF watches."""
        with _as_tuf_errors():
            yield from self._web.chunks(url, max_bytes=MAX_TARGET_BYTES)


@contextlib.contextmanager
def _as_tuf_errors() -> Iterator[None]:
    try:
        yield
    except web.TooSlow as error:
        raise SlowRetrievalError(str(error)) from error
    except web.TooLong as error:
        raise DownloadLengthMismatchError(str(error)) from error
    except web.WebError as error:
        if error.status:
            raise DownloadHTTPError(str(error), error.status) from error
        raise DownloadError(str(error)) from error


@dataclass(frozen=True, slots=True)
class TopLevel:
    """The verified top of the chain: raw files of `metadata/`, the versions of all roles, and expiries by role."""

    files: Mapping[str, bytes]
    versions: Mapping[str, int]
    expires: Mapping[str, float]


def update(directory: Path, url: str, anchor: bytes, fetcher: Fetcher) -> TopLevel:
    """Bring root, timestamp, snapshot and targets in `directory` up to date from the mirror at `url`.

    Raises:
        tuf.api.exceptions.DownloadError: The mirror does not deliver.
        tuf.api.exceptions.RepositoryError: What it delivers is refused.
    """
    updater = Updater(str(directory), url, fetcher=fetcher, config=LIMITS, bootstrap=anchor)
    updater.refresh()
    files = {f"{role}.json": (directory / f"{role}.json").read_bytes() for role in TOP_LEVEL}
    signed = {role: json.loads(files[f"{role}.json"])["signed"] for role in TOP_LEVEL}
    meta = signed["snapshot"]["meta"]
    versions = {name.removesuffix(".json"): int(item["version"]) for name, item in meta.items()}
    return TopLevel(files, versions, {role: expiry_of(signed[role]) for role in TOP_LEVEL})


def verify_role(delegator: bytes, role: str, data: bytes, *, version: int, now_s: float) -> float:
    """Verify a delegated targets role against the (verified) metadata that delegate to it; return its expiry.

    Raises:
        Refused: Not metadata, another version than the snapshot says, or not signed by enough of the right keys.
        Expired: Rightly signed, but expired.
    """
    above = _parse(delegator, "delegator").signed
    metadata = _parse(data, role)
    if metadata.signed.version != version:
        raise Refused(f"{role} is v{metadata.signed.version}, but the snapshot says v{version}")
    try:
        result = above.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    except ValueError as error:
        raise Refused(f"{role} v{version} is not delegated to: {error}") from error
    if not result:
        raise Refused(
            f"{role} v{version} has {len(result.signed)} of {result.threshold} needed signatures: it is signed by "
            f"{_keys(metadata.signatures)}, asked for are {_keys((*result.signed, *result.unsigned))}"
        )
    expires: datetime = metadata.signed.expires
    if expires.timestamp() <= now_s:
        raise Expired(role, expires.timestamp())
    return expires.timestamp()


def explain(fetcher: Fetcher, directory: Path, reason: str) -> str:
    """Return what TUF said about a refused role, with the keys that signed it and those that should have."""
    role = next((r for r in TOP_LEVEL if reason.startswith(r)), "")
    data = fetcher.last.get(role)
    if not role or data is None or " was signed by " not in reason:
        return reason
    try:
        metadata = json.loads(data)
        root = json.loads((directory / "root.json").read_bytes())["signed"]
        signatures = [s["keyid"] for s in metadata["signatures"]]
        expected = root["roles"][role]["keyids"]
        return f"{reason}: it is signed by {_keys(signatures)}, asked for are {_keys(expected)}"
    except (OSError, ValueError, KeyError, TypeError):
        return reason


def expired_role(fetcher: Fetcher, directory: Path, reason: str) -> Expired:
    """Return TUF's complaint about an expired role with the time of expiry, from what came or from what was kept."""
    role = next((r for r in TOP_LEVEL if r in reason.lower()), "timestamp")
    try:
        data = fetcher.last[role] if role in fetcher.last else (directory / f"{role}.json").read_bytes()
        return Expired(role, expiry_of(json.loads(data)["signed"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Expired(role, 0.0)


def expiry_of(signed: Mapping[str, object]) -> float:
    """Return the expiry of metadata in seconds since the epoch; raises ValueError."""
    return datetime.strptime(str(signed["expires"]), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def role_of_url(url: str) -> str:
    """Return the role of a metadata URL: `…/7.targets.json` → `targets`."""
    name = url.rpartition("/")[2].removesuffix(".json")
    version, dot, role = name.partition(".")
    return role if dot and version.isdecimal() else name


def _parse(data: bytes, role: str) -> Metadata[Targets]:
    try:
        metadata: Metadata[Targets] = Metadata.from_bytes(data)
    except (DeserializationError, ValueError) as error:
        raise Refused(f"{role} is not metadata: {error}") from error
    if not isinstance(metadata.signed, Targets):
        raise Refused(f"{role} is metadata of type {metadata.signed.type}")
    return metadata


def _keys(key_ids: object) -> str:
    ids = list(key_ids) if isinstance(key_ids, list | tuple | dict) else []
    return ", ".join(f"key {str(i)[:12]}…" for i in ids[:4]) or "nobody"


def _text(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
