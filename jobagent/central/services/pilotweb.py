"""The pilots' corner of the web server: the script, and its first stage, which neighbours help to give out.

Files lie in `pilot/` of the catalogue's directory, the first stages named by their digest, so any static web server
can serve them too; only the neighbours' help needs this one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from pathlib import Path
from urllib.parse import parse_qs

from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from jobagent.central.services.neighbours import FromNeighbour, Neighbourhood, Wait

DIRECTORY = "pilot"
SCRIPT = "pilot.sh"
TURNS = ("", "?again=1", "?again=2", "?direct")  # what pilots ask, one after the other
_POLL_S = 0.1
_DIGEST = re.compile(r"[0-9a-f]{64}")


class PilotEndpoint:
    """An ASGI application: `/pilot.sh`, `/<sha256>` and `/<sha256>/offer?port=N`.

    Pilots ask for `/<sha256>?again=1` when a neighbour has failed them, which forgets it; `/<sha256>?direct` always
    sends the file itself.
    """

    def __init__(self, directory: Path, neighbourhood: Neighbourhood) -> None:
        self._directory = directory / DIRECTORY
        self._neighbourhood = neighbourhood

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"].removeprefix(scope.get("root_path", "")).strip("/")
        response = await self._response(path, scope)
        await response(scope, receive, send)

    async def _response(self, path: str, scope: Scope) -> Response:
        if path == SCRIPT and (self._directory / SCRIPT).is_file():
            return FileResponse(
                self._directory / SCRIPT, media_type="text/plain", headers={"Cache-Control": "no-cache"}
            )
        digest, _, rest = path.partition("/")
        file = self._directory / digest
        if not _DIGEST.fullmatch(digest) or rest not in {"", "offer"} or not file.is_file():
            return PlainTextResponse("no such file\n", 404)
        address = ipaddress.ip_address(scope["client"][0])
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if rest == "offer":
            port = query.get("port", [""])[0]
            if not port.isdecimal() or not (int(port) == 0 or 1024 <= int(port) <= 65535):
                return PlainTextResponse("port must be 0 or 1024 to 65535\n", 400)
            self._neighbourhood.offer(digest, address, int(port))
            return Response(status_code=204)
        if "direct" in query or "again" in query:
            self._neighbourhood.failed(digest, address)
        if "direct" not in query:
            is_through_proxy = any(name == b"via" for name, _ in scope["headers"])
            neighbour = await self._neighbour(digest, address, may_wait=not is_through_proxy)
            if neighbour is not None:
                host = f"[{neighbour.address}]" if neighbour.address.version == 6 else str(neighbour.address)
                headers = {"Cache-Control": "no-store"}
                return RedirectResponse(f"http://{host}:{neighbour.port}/{digest}", 302, headers)
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return FileResponse(file, media_type="application/octet-stream", headers=headers)

    async def _neighbour(
        self, digest: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, *, may_wait: bool
    ) -> FromNeighbour | None:
        """Return who gives it to `address`; a site's proxy, which keeps what it gets, is not held."""
        start = time.monotonic()
        while True:
            waited_s = time.monotonic() - start if may_wait else float("inf")
            answer = self._neighbourhood.ask(digest, address, waited_s=waited_s)
            if not isinstance(answer, Wait):
                return answer if isinstance(answer, FromNeighbour) else None
            await asyncio.sleep(_POLL_S)
