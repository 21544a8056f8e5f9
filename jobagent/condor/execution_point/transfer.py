"""The file-transfer plugin for `torrent://`: data for any job, through the node service and its cache.

    torrent:///VO_ALICE@Conditions::2026     a data package of the catalogue, verified like every package
    torrent://host/path/x.torrent            the file whose torrent is at http(s)://host/path/x.torrent

HTCondor calls it as the job's user with `-infile F -outfile F`, one ad per file in each, and once with `-classad`.
Its exit status is what the hold's sub-code is made of (256 times as much), so it is the error's exit code.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time

from jobagent.condor.language import longform
from jobagent.errors import JobAgentError, JobSyntaxError, PayloadNotRunnable, one_line

METHOD = "torrent"
SCHEME = f"{METHOD}://"
CAPABILITIES = """\
MultipleFileSupport = true
PluginType = "FileTransfer"
PluginVersion = "1"
ProtocolVersion = 4
SupportedMethods = "torrent"
"""
MAX_INFILE_BYTES = 16 << 20
MAX_TORRENT_BYTES = 4 << 20  # what the node service takes in one request, with room for base64
EXIT_OF_BUG = 70  # EX_SOFTWARE
_PAIR = re.compile(rb'\[|\]|(\w+)\s*=\s*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)  # octal numbers are bytes of UTF-8
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f", b"a": b"\a", b"v": b"\v"}

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any


class Transfer:
    """One file that HTCondor wants."""

    def __init__(self, url: str, target: str) -> None:
        self.url = url
        self.target = target


def main(socket_path: str, argv: Sequence[str] | None = None) -> int:
    """Run as HTCondor's plugin; return its exit status: 0, or the exit code of the last error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["-classad"]:
        print(CAPABILITIES, end="")
        return 0
    options = dict(zip(words[::2], words[1::2], strict=False))
    if "-infile" not in options or "-outfile" not in options:
        print("usage: transfer -classad | -infile FILE -outfile FILE", file=sys.stderr)
        return 2
    with open(options["-infile"], "rb") as stream:
        wanted = requests(stream.read(MAX_INFILE_BYTES))
    code, results = 0, []
    for transfer in wanted:
        outcome, result = carry_out(transfer, lambda url, target: deliver(socket_path, url, target))
        code = outcome or code
        results.append(result)
    write_results(options["-outfile"], results)
    return code


def requests(text: bytes) -> list[Transfer]:
    """Return what an input file asks for: ads in brackets with `Url` and `LocalFileName`."""
    found: list[Transfer] = []
    fields: dict[str, str] = {}
    for match in _PAIR.finditer(text):
        if match[0] == b"]":
            if "url" in fields and "localfilename" in fields:
                found.append(Transfer(fields["url"], fields["localfilename"]))
            fields = {}
        elif match[1]:
            value = _ESCAPE.sub(_unescaped, match[2])
            fields[match[1].decode().lower()] = os.fsdecode(value)
    return found


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes([int(code, 8) & 0xFF]) if code[0] in b"01234567" else _ESCAPED.get(code, code)


def carry_out(transfer: Transfer, fetch: Callable[[str, str], int]) -> tuple[int, str]:
    """Do one transfer; return exit code and result ad, which on failure always has a message."""
    start = time.time()
    code, message, kind, done = 0, "", "", 0
    try:
        done = fetch(transfer.url, transfer.target)
    except JobAgentError as error:
        code, message, kind = error.exit_code, str(error), error.kind
    except OSError as error:
        code, message, kind = 222, f"cannot write {transfer.target}: {error.strerror}", "ScratchUnusable"
    except Exception as error:  # noqa: BLE001 - the process border: HTCondor must get a message
        code, message, kind = EXIT_OF_BUG, f"transfer plugin: {type(error).__name__}: {error}", "InternalError"
    fields: dict[str, str | int | float | bool] = {
        "TransferUrl": transfer.url,
        "TransferFileName": transfer.target,
        "TransferProtocol": METHOD,
        "TransferType": "download",
        "TransferSuccess": not code,
        "TransferFileBytes": done,
        "TransferTotalBytes": done,
        "TransferStartTime": int(start),
        "TransferEndTime": int(time.time()),
        "ConnectionTimeSeconds": round(time.time() - start, 3),
    }
    lines = [f"{name} = {new_literal(value)};" for name, value in fields.items()]
    if code:
        text = one_line(message) or "failed without a reason"
        lines.append(f"TransferError = {new_literal(text)};")
        data: dict[str, str | int] = {"ErrorCode": code, "ErrorString": text, "FailureType": kind}
        inside = " ".join(f"{name} = {new_literal(value)};" for name, value in data.items())
        lines.append(f'TransferErrorData = {{ [ ErrorType = "Transfer"; {inside} PluginLaunched = true; ] }};')
    return code, "[ " + " ".join(lines) + " ]\n"


def new_literal(value: longform.Value) -> str:
    """Return a literal in the new ClassAd syntax, in which a backslash escapes."""
    return longform.literal(value.replace("\\", "\\\\")) if isinstance(value, str) else longform.literal(value)


def write_results(path: str, results: Sequence[str]) -> None:
    """Fill the output file, which HTCondor has made long enough: on a full disk its space is all that we have."""
    data = "".join(results).encode("utf-8", "surrogateescape")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.truncate()


def deliver(socket_path: str, url: str, target: str) -> int:
    """Bring `url` to `target` and return its bytes.

    Raises:
        JobAgentError: Any of the tree, the node service's included.
        OSError: `target` cannot be written.
    """
    operation, arguments = order(url)
    answer = _ask(socket_path, operation, {**arguments, "holder": os.getpid(), "job_id": "transfer"})
    try:
        source = only_file(answer["packages"][-1]["tree"])
        shutil.copyfile(source, target)  # blocks are shared where the file system can
        return os.stat(target).st_size
    finally:
        _ask(socket_path, "release", {"id": answer["id"]})


def order(url: str) -> tuple[str, dict[str, Any]]:
    """Return operation and arguments of the node service for a URL; raises JobSyntaxError, SupplyError."""
    if not url.startswith(SCHEME) or len(url) == len(SCHEME):
        raise JobSyntaxError(f"{url[:200]!r} is not a torrent URL", remedy="write torrent://host/path/x.torrent")
    if url.startswith(f"{SCHEME}/"):
        return "prepare", {"packages": [url[len(SCHEME) + 1 :]]}
    import base64

    return "fetch", {"url": url, "torrent": base64.b64encode(torrent_of(url[len(SCHEME) :])).decode()}


def torrent_of(place: str) -> bytes:
    """Get a torrent file from a web server, over https and else over http."""
    import urllib.error
    import urllib.request

    from jobagent.errors import PackageUnavailable

    reasons = []
    for scheme in ("https", "http"):
        try:
            with urllib.request.urlopen(f"{scheme}://{place}", timeout=20) as answer:
                data: bytes = answer.read(MAX_TORRENT_BYTES + 1)
        except (OSError, ValueError) as error:
            is_answer = isinstance(error, urllib.error.HTTPError)
            reasons.append(f"{scheme}: {error if is_answer else getattr(error, 'reason', error)}")
            continue
        if len(data) > MAX_TORRENT_BYTES:
            raise PackageUnavailable(f"the torrent at {scheme}://{place} has more than {MAX_TORRENT_BYTES} bytes")
        return data
    raise PackageUnavailable(f"no torrent at {place} ({'; '.join(reasons)})", remedy="check host and path")


def only_file(tree: str) -> str:
    """Return the one file of an installed data package."""
    names = os.listdir(tree)
    path = os.path.join(tree, names[0]) if len(names) == 1 else ""
    if not os.path.isfile(path):
        raise PayloadNotRunnable(
            f"{os.path.basename(tree)} is a tree, not one file", remedy="name it in Packages, not in the input files"
        )
    return path


def _ask(socket_path: str, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    from jobagent.node import client

    try:
        return client.ask(socket_path, operation, arguments, wait_for_service_s=30.0)
    except client.ServiceError as error:
        raise Refused(error) from error


class Refused(JobAgentError):
    """What the node service said, with its own numbers."""

    def __init__(self, error: Any) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code
        self.retryable = error.is_retryable
        self._kind = error.kind

    @property
    def kind(self) -> str:
        """The class of the original error."""
        return str(self._kind)
