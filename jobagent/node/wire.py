"""The protocol of the node service's unix socket: JSON lines, version 1.  Imports nothing but the standard library.

A client sends one line and reads lines until the one that has `ok`; then either side closes.

    → {"v": 1, "op": "prepare", "job": "…", "holder": 4711}
    ← {"event": "progress", "task": "fetch VO_ALICE@ROOT::v6", "done": 1048576, "total": 200000000}
    ← {"ok": true, "id": "…", …}     or
    ← {"ok": false, "error": {"kind": "UnknownPackage", "message": "…", "exit_code": 211, "hook_status": 211,
       "retryable": false}}

Keys are added, never changed; unknown ones are ignored.  An unknown version is refused.
"""

from __future__ import annotations

import json

VERSION = 1
MAX_REQUEST_BYTES = 4 << 20  # a job ad has a few kB; a hostile one must not fill the memory of the service
MAX_LINE_BYTES = 16 << 20  # of an answer, which lists packages and an environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class WireError(ValueError):
    """A line breaks the protocol; the message says how, in one line."""


def encode(message: dict[str, Any]) -> bytes:
    """Return one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode_request(line: bytes) -> tuple[str, dict[str, Any]]:
    """Return operation and arguments of a request.

    Raises:
        WireError: Not a JSON object, another version, or no operation.
    """
    message = _object(line)
    if message.get("v") != VERSION:
        raise WireError(f"request has protocol version {str(message.get('v'))[:20]}, this service speaks {VERSION}")
    operation = message.get("op")
    if not isinstance(operation, str):
        raise WireError("request names no operation")
    return operation, {key: value for key, value in message.items() if key not in ("v", "op")}


def decode_answer(line: bytes) -> dict[str, Any]:
    """Return one line of an answer; raises WireError where it is not a JSON object."""
    return _object(line)


def _object(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not a line of JSON: {str(error)[:100]}") from error
    if not isinstance(message, dict):
        raise WireError("not a JSON object")
    return message
