"""The protocol of the node service's unix socket: JSON lines, version 1.  Imports nothing but the standard library.

A client sends one line and reads lines until the one that has `ok`; then either side closes.

    → {"v": 1, "op": "prepare", "job": "…", "holder": 4711}
    ← {"event": "progress", "task": "fetch VO_ALICE@ROOT::v6", "done": 1048576, "total": 200000000}
    ← {"ok": true, "id": "…", …}     or
    ← {"ok": false, "error": {"kind": "UnknownPackage", "message": "…", "exit_code": 211, "hook_status": 211,
       "retryable": false}}

Keys are added, never changed; unknown ones are ignored.  An unknown version is refused.

Hooks start on every job's path: of `json` only what is in C is imported, because the rest, with the `re` that it
needs, would take as long as all that a hook does.
"""

from __future__ import annotations

VERSION = 1
MAX_REQUEST_BYTES = 4 << 20  # a job ad has a few kB; a hostile one must not fill the memory of the service
MAX_LINE_BYTES = 16 << 20  # of an answer, which lists packages and an environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _AsJson:
    """What the scanner is told: the same as by `json.loads`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def _refused(value: object) -> str:
    raise TypeError(f"{type(value).__name__} cannot be said in JSON")


try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    _SCAN: Any = make_scanner(_AsJson)  # type: ignore[arg-type]
    _RENDER: Any = make_encoder(None, _refused, encode_basestring_ascii, None, ":", ",", False, False, True)
except (ImportError, AttributeError, TypeError):  # not CPython, or one that changed these: slower, the same lines
    _SCAN = _RENDER = None


class WireError(ValueError):
    """A line breaks the protocol; the message says how, in one line."""


def encode(message: dict[str, Any]) -> bytes:
    """Return one line."""
    if _RENDER is None:
        import json

        return json.dumps(message, separators=(",", ":")).encode() + b"\n"
    return "".join(_RENDER(message, 0)).encode() + b"\n"


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
        message = _value(line.decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"not a line of JSON: {str(error)[:100]}") from error
    if not isinstance(message, dict):
        raise WireError("not a JSON object")
    return message


def _value(text: str) -> Any:
    if _SCAN is None:
        import json

        return json.loads(text)
    text = text.strip(" \t\r\n")
    try:
        value, end = _SCAN(text, 0)
    except StopIteration as error:
        raise ValueError(f"no value at character {error.value}") from error
    if end != len(text):
        raise ValueError(f"something follows the value at character {end}")
    return value
