"""An ASGI application on a socket, in a thread of its own, so that the main thread is left to wait for signals."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading

import uvicorn
from starlette.applications import Starlette

from jobagent.errors import ConfigurationError, NoFreePort, SiteError

START_TIMEOUT_S = 10.0
GRACE_S = 2  # for downloads in progress when the server ends


class WebServer:
    """Listens from construction, serves from `start` to `stop`.

    Args:
        app: The application; `app.state.is_ending` tells it when answers are no longer to be held back.
        host: Address to bind; `::` serves IPv4 too.
        port: 0 takes any free one.

    Raises:
        NoFreePort: The port is taken.
        ConfigurationError: The address is not one of this machine.
    """

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        self._socket = _bound(host, port)
        self._port = int(self._socket.getsockname()[1])
        self._host = host
        self._app = app
        # proxy headers off: a client must not choose the address under which the tracker lists it
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=5,
            timeout_graceful_shutdown=GRACE_S,
            backlog=1024,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that was bound."""
        return self._port

    @property
    def url(self) -> str:
        """A URL by which this machine reaches the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{self.port}"

    def start(self) -> None:
        """Serve from now on; returns when requests are answered."""
        self._thread.start()
        if not self._server.is_ready.wait(START_TIMEOUT_S):
            raise SiteError(f"the web server on {self.url} did not start within {START_TIMEOUT_S:.0f} s")

    def stop(self) -> None:
        """End within a few seconds; idempotent."""
        self._app.state.is_ending = True
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(GRACE_S + 5)
        self._socket.close()


class _Server(uvicorn.Server):
    """uvicorn, telling when it is ready."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does, then say so."""
        await super().startup(sockets)
        self.is_ready.set()


def _bound(host: str, port: int) -> socket.socket:
    try:
        is_six = ipaddress.ip_address(host or "0.0.0.0").version == 6
        bound = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_six else socket.AF_INET,
            backlog=1024,
            dualstack_ipv6=is_six and host == "::" and socket.has_dualstack_ipv6(),
        )
        # asyncio leaves sockets that it did not make to Nagle's algorithm: 40 ms on every answer with a body.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return bound
    except ValueError as error:
        raise ConfigurationError(f"{host!r} is not an address to listen on") from error
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise NoFreePort(f"cannot listen on {host} port {port}: {error.strerror}") from error
        raise ConfigurationError(f"cannot listen on {host}: {error.strerror}") from error
