"""Gives the runtime to pilots that land near by: one file over HTTP, offered to the central web servers.

A program of its own beside the glide-in, started with `python -m`; ends with it.  The pilots know the file's digest,
so nothing here needs to be trusted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import socketserver
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

log = logging.getLogger("jobagent.neighbour")

MAX_DOWNLOADS = 16  # at a time; whoever comes then is told to go elsewhere
RENEW_S = 60.0
TIMEOUT_S = 10.0
RESULT_GONE = 404


class Share(ThreadingHTTPServer):
    """Serves one file under every path, because the path is a digest that the client checks."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, file: Path, address: str, port: int = 0) -> None:
        self.file = file
        self.downloads = threading.BoundedSemaphore(MAX_DOWNLOADS)
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which worker nodes wait for in vain."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: Share
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """Send the file."""
        if not self.server.downloads.acquire(blocking=False):
            self.send_error(503)
            return
        try:
            with self.server.file.open("rb") as stream, contextlib.suppress(ConnectionError, TimeoutError):
                self.send_response(200)
                self.send_header("Content-Type", "application/octet-stream")
                self.send_header("Content-Length", str(os.fstat(stream.fileno()).st_size))
                self.end_headers()
                shutil.copyfileobj(stream, self.wfile, 1 << 18)
        except OSError as error:
            log.warning("cannot send %s: %s", self.server.file, error)
        finally:
            self.server.downloads.release()

    def log_message(self, format: str, *arguments: object) -> None:
        """Log as everything else does."""
        log.info("%s %s", self.address_string(), format % arguments)


def offer(urls: Sequence[str], port: int) -> list[str]:
    """Tell each central server the port (0: no longer); return those to tell again."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy's address would be noted as ours
    again = []
    for url in urls:
        try:
            with opener.open(f"{url}?port={port}", timeout=TIMEOUT_S):
                again.append(url)
        except urllib.error.HTTPError as error:
            if error.code != RESULT_GONE:  # a plain web server knows no offers
                again.append(url)
        except (OSError, ValueError) as error:
            log.warning("cannot offer the runtime to %s: %s", url, error)
            again.append(url)
    return again


def main(argv: Sequence[str] | None = None) -> int:
    """Serve and offer until SIGTERM."""
    parser = argparse.ArgumentParser(prog="neighbour", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("urls", nargs="*", help="where to offer it")
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    share = Share(args.file, args.address, args.port)
    threading.Thread(target=share.serve_forever, daemon=True).start()
    port = share.server_address[1]
    log.info("serving %s on port %d", args.file, port)
    urls = list(args.urls)
    while True:
        urls = offer(urls, port)
        if ended.wait(RENEW_S):
            break
    offer(urls, 0)
    share.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
