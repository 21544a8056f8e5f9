"""Asking the mirrors, in order, until one can be believed; and saying in one line why none could.

A mirror is asked for a whole, consistent state.  One that does not answer, lies or is out of date is left, with a
warning, for the next.  Where none answers, the node's own copy is asked the same questions, so that its expiry is
checked as well.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tuf.api.exceptions import DownloadError, ExpiredMetadataError, RepositoryError

from jobagent.plugin import (
    BadSignature,
    CatalogueExpired,
    CatalogueUnreachable,
    JobAgentError,
    SiteError,
)
from jobagent_catalogue import chain
from jobagent_catalogue.receipt import Receipt
from jobagent_catalogue.settings import CatalogueSettings
from jobagent_catalogue.web import Web, WebError

OWN_COPY = "own copy"


@dataclass(frozen=True, slots=True)
class Loader:
    """What loading needs: the site's settings, the state directory, the anchor, and the way out."""

    settings: CatalogueSettings
    mirrors: tuple[str, ...]
    directory: Path
    anchor: bytes
    web: Web
    clock: Callable[[], float]
    warn: Callable[[str], None]


def update(loader: Loader, kept: Receipt | None) -> Receipt:
    """Return the receipt of the newest state that a mirror gives; keep of `kept` what is still true.

    Raises:
        CatalogueUnreachable, CatalogueExpired, BadSignature, SiteError: As in `SignedCatalogue.refresh`.
    """
    loader.web.clock_reading = None
    failures: list[JobAgentError] = []
    for mirror in loader.mirrors:
        try:
            receipt = _ask(loader, mirror, kept)
        except JobAgentError as error:
            failures.append(error)
            continue
        for failure in failures:
            loader.warn(f"a mirror was left out: {failure.cause_line}")
        return receipt
    if all(isinstance(error, CatalogueUnreachable) for error in failures):
        return _own_copy(loader, kept, failures)
    # Worst first: a refusal is more than silence.
    raise next(e for kind in (BadSignature, SiteError, CatalogueExpired) for e in failures if isinstance(e, kind))


def stale(kept: Receipt, now_s: float) -> Receipt:
    """Return a receipt of the same state, noting that a mirror was asked in vain."""
    return replace(kept, checked_s=max(now_s, kept.verified_s + 1e-3))


def load_role(loader: Loader, delegator: bytes, role: str, *, version: int, preferred: str) -> tuple[bytes, float]:
    """Return a delegated role and its expiry: from the state directory, else from a mirror.

    Raises:
        CatalogueUnreachable, CatalogueExpired, BadSignature: No mirror has one that can be believed.
    """
    failures: list[JobAgentError] = []
    now_s = loader.clock()
    mirrors = sorted(loader.mirrors, key=lambda mirror: mirror != preferred)
    for source in (OWN_COPY, *mirrors):
        try:
            if source == OWN_COPY:
                data = (loader.directory / f"roles/{role}.json").read_bytes()
            else:
                url = f"{source}metadata/{version}.{role}.json"
                data = loader.web.fetch(url, max_bytes=chain.LIMITS.targets_max_length)
            return data, chain.verify_role(delegator, role, data, version=version, now_s=now_s)
        except chain.Refused as error:
            if source != OWN_COPY:
                failures.append(_refused(source, str(error)))
        except chain.Expired as error:
            failures.append(_expired(loader, source, error))
        except WebError as error:
            failures.append(CatalogueUnreachable(str(error)))
        except OSError:
            continue  # not kept yet
    raise next(e for kind in (BadSignature, CatalogueExpired, JobAgentError) for e in failures if isinstance(e, kind))


def _ask(loader: Loader, mirror: str, kept: Receipt | None) -> Receipt:
    """Ask one mirror; a refusal is checked once more, as a publisher may have been half-way."""
    fetcher = chain.Fetcher(loader.web)
    for is_last in (False, True):
        try:
            top = chain.update(loader.directory / "metadata", f"{mirror}metadata/", loader.anchor, fetcher)
        except ExpiredMetadataError as error:
            _check_clock(loader, mirror)
            raise _expired(
                loader, mirror, chain.expired_role(fetcher, loader.directory / "metadata", str(error))
            ) from error
        except DownloadError as error:
            raise CatalogueUnreachable(
                f"catalogue {mirror} does not deliver: {error or type(error).__name__}",
                remedy="see whether the web server runs and can be reached from here",
            ) from error
        except RepositoryError as error:
            if is_last:
                reason = chain.explain(fetcher, loader.directory / "metadata", str(error) or type(error).__name__)
                raise _refused(mirror, reason) from error
        else:
            _check_clock(loader, mirror)
            return _receipt(top, mirror, loader.clock(), kept)
    raise AssertionError("unreachable")


def _own_copy(loader: Loader, kept: Receipt | None, failures: list[JobAgentError]) -> Receipt:
    """Return what is kept, verified again, expiry included."""
    if kept is not None and loader.clock() >= kept.expires_s:
        return _expired_copy(loader, kept)
    metadata = loader.directory / "metadata"
    try:
        top = chain.update(metadata, metadata.as_uri() + "/", loader.anchor, chain.Fetcher(loader.web))
    except (DownloadError, RepositoryError):
        raise failures[0] from None  # nothing valid is kept
    loader.warn(f"no mirror of the catalogue answers, what is kept is used: {failures[0].cause_line}")
    receipt = _receipt(top, OWN_COPY, loader.clock(), kept)
    return stale(replace(receipt, verified_s=kept.verified_s if kept else 0.0), receipt.checked_s)


def _expired_copy(loader: Loader, kept: Receipt) -> Receipt:
    """Return what is kept although it expired, within the site's grace."""
    grace_s = loader.settings.grace_s
    if loader.clock() >= kept.expires_s + grace_s:
        role = min(kept.expires, key=lambda name: kept.expires[name])
        raise _expired(loader, "(own copy, no mirror answers)", chain.Expired(role, kept.expires[role]))
    loader.warn(f"no mirror answers and the catalogue expired: it is used for {grace_s:g} s after that")
    return stale(kept, loader.clock())


def _receipt(top: chain.TopLevel, source: str, now_s: float, kept: Receipt | None) -> Receipt:
    files = {f"metadata/{name}": hashlib.sha256(data).hexdigest() for name, data in top.files.items()}
    expires = dict(top.expires)
    if kept is not None and kept.files.get("metadata/snapshot.json") == files["metadata/snapshot.json"]:
        # The same snapshot: the roles below it are the same, and so is who vouches for them.
        files |= {path: digest for path, digest in kept.files.items() if path.startswith("roles/")}
        expires |= {role: when for role, when in kept.expires.items() if role not in expires}
    snapshot_version = _version_of(top.files["snapshot.json"])
    return Receipt(source, snapshot_version, now_s, now_s, dict(top.versions), expires, files)


def _version_of(data: bytes) -> int:
    return int(json.loads(data)["signed"]["version"])


def _check_clock(loader: Loader, mirror: str) -> None:
    """Refuse a clock that is far behind: it would take expired metadata for valid.  Far ahead is only a warning."""
    reading = loader.web.clock_reading
    if reading is None or abs(reading.behind_s) <= loader.settings.clock_tolerance_s:
        return
    told = f"here it is {_text(reading.local_s)}, at {mirror} {_text(reading.server_s)}"
    if reading.behind_s > 0:
        raise SiteError(
            f"this node's clock is {_span(reading.behind_s)} behind: {told}", remedy="set the clock (NTP)"
        )
    loader.warn(f"this node's clock is {_span(-reading.behind_s)} ahead: {told}; set the clock (NTP)")


def _refused(mirror: str, reason: str) -> JobAgentError:
    return BadSignature(
        f"catalogue {mirror} is refused: {reason}",
        remedy="nothing is installed from it; tell its manager, and do not change the root to make this go away",
    )


def _expired(loader: Loader, source: str, error: chain.Expired) -> CatalogueExpired:
    return CatalogueExpired(
        f"catalogue {source}: {error}, here it is {_text(loader.clock())}",
        remedy="its manager must run jobagent catalogue refresh; or this node's clock is wrong",
    )


def _text(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _span(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days" if seconds > 86400 else f"{seconds / 3600:.1f} hours"
