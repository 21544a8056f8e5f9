"""`jobagent cache`: look at and manage the cache of this node, through its service or directly."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobagent.cli import ask
from jobagent.cli.main import report
from jobagent.cli.progress import ProgressDisplay
from jobagent.errors import CacheTampered, JobAgentError, SiteError, UsageError
from jobagent.events import Events

Answer = dict[str, Any]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    ask.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_text, what in (
        ("list", "what is installed, how big, when used, by how many", ""),
        ("du", "what the cache takes of the disk and what sharing files saves", ""),
        ("verify", "hash packages; damaged ones go to quarantine (default: all)", "*"),
        ("evict", "remove packages that nobody uses", "+"),
        ("pin", "keep packages from eviction", "+"),
        ("unpin", "let packages be evicted again", "+"),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text.capitalize() + ".")
        if what:
            action.add_argument("packages", nargs=what, metavar="PACKAGE", help="VO_ORG@Name::version, or a digest")
    prewarm = actions.add_parser("prewarm", help="install packages before any job wants them")
    prewarm.add_argument("packages", nargs="*", metavar="PACKAGE", help="[VO_ORG@]Name[::version]")
    prewarm.add_argument("--from", dest="file", type=Path, metavar="FILE", help="read names from FILE, one a line")


def run(args: argparse.Namespace) -> int:
    """Do it and print what came of it."""
    events = Events()
    with ProgressDisplay(events, is_quiet=args.action != "prewarm"), ask.at_hand(args, events) as asking:
        answer = _ACTIONS[args.action](asking, args)
    failure = _failure(args.action, answer)
    if args.json:
        said = {"error": failure.kind, "message": str(failure), "exit_code": failure.exit_code} if failure else {}
        print(json.dumps({**answer, "ok": failure is None, **said}, indent=2))
    else:
        print("\n".join(_LINES[args.action](answer)))
    return report(failure, as_json=False) if failure else 0


def _prewarm(asking: ask.Asking, args: argparse.Namespace) -> Answer:
    names = list(args.packages)
    if args.file:
        try:
            lines = args.file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {args.file}: {error}") from error
        names += [name for line in lines if (name := line.partition("#")[0].strip())]
    if not names:
        raise UsageError("no packages are named", remedy="name some, or give a list with --from")
    return asking("prewarm", {"packages": names})


_ACTIONS: dict[str, Callable[[ask.Asking, argparse.Namespace], Answer]] = {
    "list": lambda asking, args: asking("list", {}),
    "du": lambda asking, args: asking("du", {}),
    "verify": lambda asking, args: asking("verify", {"packages": args.packages or ["*"]}),
    "evict": lambda asking, args: asking("evict", {"packages": args.packages}),
    "pin": lambda asking, args: asking("pin", {"packages": args.packages}),
    "unpin": lambda asking, args: asking("pin", {"packages": args.packages, "unpin": True}),
    "prewarm": _prewarm,
}


def _failure(action: str, answer: Answer) -> JobAgentError | None:
    """The error to end with where something was not done."""
    failed = [r["id"] for r in answer.get("results", ()) if not r["done"]]
    if failed and action == "verify":
        return CacheTampered(f"damaged and put into quarantine: {', '.join(failed)}")
    if failed:
        return SiteError(
            f"cannot {action} {', '.join(failed)}: leased, pinned or gone", remedy="see jobagent cache list"
        )
    return None


def _list_lines(answer: Answer) -> Sequence[str]:
    entries = sorted(answer["entries"], key=lambda e: -e["last_used_s"])
    if not entries:
        return ["the cache is empty"]
    width = max(len(e["package_id"]) for e in entries)
    lines = []
    for e in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(e["last_used_s"]))
        marks = " ".join(word for word, on in (("pinned", e["is_pinned"]), ("seedable", e["is_seedable"])) if on)
        size = f"{e['size_bytes'] / 1e6:10.1f} MB"
        lines.append(f"{e['package_id']:<{width}}  {e['key'][:12]}  {size}  {used}  {e['leases']:3d} leases  {marks}")
    return [line.rstrip() for line in lines]


def _usage_lines(answer: Answer) -> Sequence[str]:
    usage = answer["usage"]
    if usage is None:
        return [f"{answer['root']}: no figures; private caches go with their jobs"]
    rows = (
        ("packages", usage["packages"], ""),
        ("trees", usage["logical_bytes"], "B"),
        ("  saved by sharing files", usage["saved_bytes"], "B"),
        ("  on disk", usage["stored_bytes"], "B"),
        ("archives", usage["archive_bytes"], "B"),
        ("interrupted downloads", usage["partial_bytes"], "B"),
        ("quarantine", usage["quarantine_bytes"], "B"),
        ("used", usage["used_bytes"], "B"),
        ("limit", usage["limit_bytes"], "B"),
        ("free on disk", usage["free_bytes"], "B"),
        ("files and directories", usage["inodes"], ""),
    )
    return [
        answer["root"],
        *(f"{name:<26}{value / 1e6:>14.1f} MB" if unit else f"{name:<26}{value:>14d}" for name, value, unit in rows),
    ]


def _result_lines(answer: Answer) -> Sequence[str]:
    return [f"{r['id']} {'done' if r['done'] else 'not done'}" for r in answer["results"]] or ["the cache is empty"]


def _prewarm_lines(answer: Answer) -> Sequence[str]:
    return [f"{p['id']} {'was there' if p['cache_hit'] else 'installed'}" for p in answer["packages"]]


_LINES: dict[str, Callable[[Answer], Sequence[str]]] = {
    "list": _list_lines,
    "du": _usage_lines,
    "verify": _result_lines,
    "evict": _result_lines,
    "pin": _result_lines,
    "unpin": _result_lines,
    "prewarm": _prewarm_lines,
}
