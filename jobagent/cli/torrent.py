"""`jobagent torrent`: look at torrent files as the hostile input that they are."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from jobagent.central.packaging import torrents
from jobagent.errors import HostileArchive, UsageError

MAX_FILE_BYTES = 64 << 20  # more than any torrent; what is accepted is bounded by torrents.check


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = commands.add_parser("check", help="say of each file whether the agent would take it, and why not")
    show = commands.add_parser("show", help="show what a torrent describes")
    for command in (check, show):
        command.add_argument("files", nargs="+", type=Path, metavar="FILE")
        command.add_argument("--json", action="store_true", help="print one JSON object a file")


def run(args: argparse.Namespace) -> int:
    """Print a verdict for each file; the exit code is that of a hostile archive where one is refused."""
    code = 0
    for path in args.files:
        try:
            summary = torrents.check(_read(path))
        except HostileArchive as error:
            code = error.exit_code
            record: dict[str, object] = {"file": str(path), "accepted": False, "reason": error.cause_line}
            line = f"{path}: refused: {error.cause_line}"
        else:
            record = {"file": str(path), "accepted": True, **dataclasses.asdict(summary)}
            line = _describe(path, summary) if args.action == "show" else f"{path}: accepted{_ignored(summary)}"
        print(json.dumps(record) if args.json else line)
    return code


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise HostileArchive(f"torrent has more than {MAX_FILE_BYTES} bytes")
    return data


def _ignored(summary: torrents.TorrentSummary) -> str:
    return f", ignored: {', '.join(summary.ignored)}" if summary.ignored else ""


def _describe(path: Path, summary: torrents.TorrentSummary) -> str:
    rows = {
        "file": summary.file_name,
        "size": f"{summary.size_bytes} bytes in {summary.pieces} pieces of {summary.piece_size}",
        "infohash v1": summary.infohash_v1 or "none",
        "infohash v2": summary.infohash_v2 or "none",
        "ignored": ", ".join(summary.ignored) or "nothing",
    }
    return "\n".join([str(path), *(f"  {key:<12} {value}" for key, value in rows.items())])
