"""The central services on one HTTP port: catalogue files, tracker, status page, metrics.

An ASGI application that knows HTTP and leaves every decision to the tracker's rules.  Only the four directories of a
catalogue are served, whatever else lies beside them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.resources
import ipaddress
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobagent.central.packaging import torrents
from jobagent.central.services import announces, tokens
from jobagent.central.services.neighbours import Neighbourhood
from jobagent.central.services.pilotweb import SCRIPT, PilotEndpoint
from jobagent.central.services.showing import Shown, metrics, note, status
from jobagent.central.services.tracker import Announce, Refused, Tracker
from jobagent.errors import HostileArchive

_INFOHASH_V2 = _SHA256 = re.compile(r"[0-9a-f]{64}")
DEMAND_POLL_S = 0.25
STATUS_SHARE = 0.05  # of the event loop's time that making the status may take
CATALOGUE_DIRECTORIES = ("metadata", "archives", "torrents", "objects")


@dataclass(slots=True)
class Services(Shown):
    """What runs in this process; None is what does not."""

    directory: Path | None = None
    token_keys: Mapping[str, Ed25519PublicKey] = dataclasses.field(default_factory=dict)
    advertise: str = ""
    neighbourhood: Neighbourhood = dataclasses.field(default_factory=lambda: Neighbourhood(clock=time.monotonic))


def build(services: Services) -> Starlette:
    """Return the application for `services`."""
    routes: list[BaseRoute] = [
        Route("/", _page(services)),
        Route("/status.json", _status(services)),
        Route("/history.json", _history(services)),
        Route("/metrics", _metrics(services)),
    ]
    if services.tracker is not None:
        routes += [
            Route("/announce", AnnounceEndpoint(services, services.tracker)),
            Route("/scrape", ScrapeEndpoint(services.tracker)),
            Route("/wanted", _wanted(services, services.tracker)),
        ]
    if services.directory is not None:
        routes.append(Route("/torrents/v1/{infohash}.torrent", _legacy_torrent(services.directory)))
        for name in CATALOGUE_DIRECTORIES:
            files = StaticFiles(directory=services.directory / name, check_dir=False)
            routes.append(Mount(f"/{name}", app=_Counted(files, services)))
        pilots = _Counted(PilotEndpoint(services.directory, services.neighbourhood), services)
        routes += [Mount("/pilot", app=pilots), Route(f"/{SCRIPT}", pilots)]
    app = Starlette(routes=routes)
    app.state.is_ending = False
    return app


class AnnounceEndpoint:
    """`/announce` as an ASGI application: the query is bytes, which no text-minded framework keeps intact."""

    def __init__(self, services: Services, tracker: Tracker) -> None:
        self._services = services
        self._tracker = tracker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one announce; a refusal is a bencoded `failure reason` with status 200, as clients expect."""
        try:
            asker = ipaddress.ip_address(scope["client"][0])
            server = ipaddress.ip_address(self._services.advertise or scope["server"][0])
            query = announces.parse(scope["query_string"], asker, server)
            answer = self._tracker.announce(self._qualified(query))
            note(self._services)
            body = announces.encode_answer(answer, is_compact=query.is_compact, asker=asker)
        except (Refused, tokens.TokenRefused) as error:
            body = announces.encode_failure(error.cause_line)
        await _send(send, body)

    def _qualified(self, query: announces.AnnounceQuery) -> Announce:
        """Add what the token says; raises TokenRefused where one is needed and not valid."""
        claims = _claims(self._services, self._tracker, query.token)
        if claims is None:
            return query.announce
        return dataclasses.replace(query.announce, namespace=claims.namespace, site=claims.site)


def _claims(services: Services, tracker: Tracker, token: str) -> tokens.Claims | None:
    """What a token says, None where none is given and none needed; raises TokenRefused."""
    if not tracker.policy.needs_token and not (token and services.token_keys):
        return None
    return tokens.verify(token, services.token_keys, now_s=time.time())


class ScrapeEndpoint:
    """`/scrape` (BEP 48)."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one scrape; unknown infohashes are left out."""
        try:
            wanted = announces.scraped_infohashes(scope["query_string"])
            found = {infohash: self._tracker.scrape(infohash) for infohash in wanted}
            body = announces.encode_scrape({k: v for k, v in found.items() if v is not None})
        except Refused as error:
            body = announces.encode_failure(error.cause_line)
        await _send(send, body)


async def _send(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Counted:
    """Counts the bytes of files that are sent."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.body":
                count = len(message.get("body", b""))
                self._services.http_bytes += count
                if archive:
                    self._services.archive_bytes[archive] += count
            await send(message)

        _, _, below = scope["path"].partition("/archives/")
        archive = below.partition("/")[0] if _SHA256.fullmatch(below.partition("/")[0]) else ""

        await self._app(scope, receive, counted)


async def _seeder_numbers(services: Services) -> Mapping[str, float]:
    """The seeder's counters, asked outside the event loop because libtorrent may take a while to answer."""
    return await run_in_threadpool(services.seeder.status) if services.seeder else {}


# Handlers of a few synchronous lines: `async` keeps them in the event loop, which alone may touch the tracker.


def _page(services: Services) -> Callable[[Request], object]:
    text = importlib.resources.files("jobagent.central.services").joinpath("status.html").read_text(encoding="utf-8")

    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse(text)

    return page


def _status(services: Services) -> Callable[[Request], object]:
    """The status, made anew so seldom that a page with twenty thousand packages does not hold up announces."""
    body, until_s = b"", 0.0

    async def answer(request: Request) -> Response:
        nonlocal body, until_s
        note(services)
        if time.monotonic() >= until_s:
            seeder = await _seeder_numbers(services)
            start = time.monotonic()
            body = json.dumps(status(services, seeder)).encode()
            until_s = start + (time.monotonic() - start) / STATUS_SHARE
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})

    return answer


def _history(services: Services) -> Callable[[Request], object]:
    """The traffic since the start, as `jobagent swarm plot` reads it."""

    async def answer(request: Request) -> JSONResponse:
        note(services)
        samples = [dataclasses.asdict(sample) for sample in services.history.samples]
        return JSONResponse({"samples": samples}, headers={"cache-control": "no-store"})

    return answer


def _wanted(services: Services, tracker: Tracker) -> Callable[[Request], object]:
    """`/wanted`: digests of the archives that nodes of the asker's site have or want, for its site seeder.

    With `hold=SECONDS` the answer waits for another tag than `tag`, and nodes of the site count on the asker.
    """

    async def answer(request: Request) -> JSONResponse:
        query = request.scope["query_string"]
        try:
            claims = _claims(services, tracker, announces.token_of(query))
            tag, hold_s = announces.hold_of(query)
            asker = announces.plain(ipaddress.ip_address(request.scope["client"][0]))
            site = tracker.site_of(asker, claims.site if claims else "")
        except (Refused, tokens.TokenRefused) as error:
            return JSONResponse({"failure": error.cause_line})
        if not hold_s:
            return JSONResponse({"swarms": tracker.wanted(site)})
        until_s = time.monotonic() + hold_s
        while (now_tag := tracker.listen(site)) == tag and time.monotonic() < until_s:
            if request.app.state.is_ending or await request.is_disconnected():
                break
            await asyncio.sleep(DEMAND_POLL_S)
        return JSONResponse({"swarms": tracker.wanted(site), "tag": now_tag})

    return answer


def _legacy_torrent(directory: Path) -> Callable[[Request], object]:
    """A torrent for clients that know only BEP 3, with our tracker inside; named by the v2 infohash."""

    def answer(request: Request) -> Response:
        infohash = request.path_params["infohash"]
        if not _INFOHASH_V2.fullmatch(infohash):
            return Response(status_code=404)
        try:
            hybrid = (directory / "torrents" / f"{infohash}.torrent").read_bytes()
            made = torrents.legacy(hybrid, f"{request.base_url}announce")
        except (OSError, HostileArchive):
            return Response(status_code=404)
        return Response(made.data, media_type="application/x-bittorrent")

    return answer


def _metrics(services: Services) -> Callable[[Request], object]:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(
            metrics(services, await _seeder_numbers(services)), media_type="text/plain; version=0.0.4"
        )

    return answer
