"""Asking the node service: what hooks and commands use.  Imports nothing but the standard library and `wire`.

Its start-up is on every job's path: no dataclasses, no typing, no argparse, and of `socket` only what is in C, since
the rest builds enumerations of hundreds of constants first.
"""

from __future__ import annotations

import _socket as socket
import os
import time

from jobagent.node import wire

SOCKET_VARIABLE = "JOBAGENT_SOCKET"
CONNECT_RETRY_S = 0.1
READ_BYTES = 1 << 16
MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


class ServiceError(Exception):
    """The node service refused, or does not answer.

    `kind` is a class name of `jobagent.errors`; `hook_status` is what HTCondor's hooks print as HookStatusCode.
    """

    def __init__(
        self, kind: str, message: str, *, exit_code: int = 225, hook_status: int = 325, is_retryable: bool = True
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.exit_code = exit_code
        self.hook_status = hook_status
        self.is_retryable = is_retryable


def default_socket(environ: Mapping[str, str] | None = None) -> str:
    """Return where the node service listens unless the site says: $JOBAGENT_SOCKET, /run for root, else the user's.

    Raises:
        ServiceError: The directory in /tmp belongs to somebody else, who could answer in the service's place.
    """
    environ = os.environ if environ is None else environ
    named = environ.get(SOCKET_VARIABLE)
    if named:
        return named
    if os.geteuid() == 0:
        return "/run/jobagent/node.sock"
    runtime = environ.get("XDG_RUNTIME_DIR")
    directory = f"{runtime}/jobagent" if runtime else f"/tmp/jobagent-{os.geteuid()}"
    if os.path.lexists(directory) and os.lstat(directory).st_uid != os.geteuid():
        raise _unavailable(directory, "the directory belongs to another user")
    return f"{directory}/node.sock"


def ask(
    path: str,
    operation: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    on_event: Callable[[dict[str, Any]], object] | None = None,
    timeout_s: float = 60.0,
    wait_for_service_s: float = 0.0,
    deadline: float = float("inf"),
) -> dict[str, Any]:
    """Send one request and return the answer.

    Args:
        on_event: Called with each line before the last: progress, warnings.
        timeout_s: Longest silence; the service sends a line at least every few seconds while it works.
        wait_for_service_s: How long to wait for a service that is just being started.
        deadline: When to give up in any case, as `time.monotonic` tells the time.

    Raises:
        ServiceError: It refused, or `kind` is NodeServiceUnavailable where it does not answer.
    """
    request = wire.encode({**(arguments or {}), "v": wire.VERSION, "op": operation})
    if len(request) > wire.MAX_REQUEST_BYTES:
        raise ServiceError(
            "JobSyntaxError",
            f"the job description has {len(request)} bytes, at most {wire.MAX_REQUEST_BYTES} are accepted",
            exit_code=214,
            hook_status=214,
            is_retryable=False,
        )
    connection = _connect(path, min(timeout_s, _left_s(deadline)), wait_for_service_s)
    try:
        try:  # noqa: SIM105 - contextlib is slow to import
            connection.sendall(request)
        except BrokenPipeError:
            pass  # a service that refuses at once has answered before it reads
        pending = b""
        while True:
            line, pending = _line(connection, pending, min(timeout_s, _left_s(deadline)))
            if not line:
                raise _unavailable(path, "it closed the connection")
            answer = wire.decode_answer(line)
            if "ok" not in answer:
                if on_event is not None:
                    on_event(answer)
                continue
            if not answer["ok"]:
                raise _refusal(answer.get("error"))
            return answer
    except TimeoutError:
        raise _unavailable(path, f"no answer in {timeout_s:g} s") from None
    except OSError as error:
        raise _unavailable(path, error.strerror or str(error)) from error
    except wire.WireError as error:
        raise _unavailable(path, str(error)) from error
    finally:
        connection.close()


def _line(connection: socket.socket, pending: bytes, timeout_s: float) -> tuple[bytes, bytes]:
    """Return the next line and what came after it; an empty line where the other end closed or sends no newline."""
    chunks = [pending]
    size = len(pending)
    while b"\n" not in chunks[-1]:
        connection.settimeout(timeout_s)
        chunk = connection.recv(READ_BYTES)
        size += len(chunk)
        if not chunk or size > wire.MAX_LINE_BYTES:
            return b"", b""
        chunks.append(chunk)
    line, _, rest = b"".join(chunks).partition(b"\n")
    return line + b"\n", rest


def _left_s(deadline: float) -> float:
    """Seconds until the deadline, never the 0 that would mean not to wait at all."""
    return max(deadline - time.monotonic(), 0.001)


def at(path: str, act: Callable[[str], object]) -> None:
    """Call `bind` or `connect` with the address of a socket, which may be longer than the kernel takes at once."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        act(path)
        return
    directory, name = os.path.split(path)
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        act(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)


def _connect(path: str, timeout_s: float, wait_s: float) -> socket.socket:
    deadline = time.monotonic() + wait_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            at(path, connection.connect)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            if time.monotonic() >= deadline:
                raise _unavailable(path, error.strerror or str(error)) from error
            time.sleep(CONNECT_RETRY_S)
        except OSError as error:
            connection.close()
            raise _unavailable(path, error.strerror or str(error)) from error
        else:
            return connection


def _refusal(error: Any) -> ServiceError:
    fields = error if isinstance(error, dict) else {}
    return ServiceError(
        str(fields.get("kind", "JobAgentError")),
        str(fields.get("message", "refused without a reason")),
        exit_code=int(fields.get("exit_code", 200)),
        hook_status=int(fields.get("hook_status", 300)),
        is_retryable=bool(fields.get("retryable", True)),
    )


def _unavailable(path: str, why: str) -> ServiceError:
    return ServiceError("NodeServiceUnavailable", f"node service at {path}: {why}; see jobagent node")
