"""`jobagent pilots`: submit pilots through compute elements, watch them, keep as many as jobs call for."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from jobagent.condor.pilots import elements, factory, slot
from jobagent.condor.pilots import queue as queues
from jobagent.condor.pilots.elements import Element, Order
from jobagent.errors import ConfigurationError, JobAgentError, SiteError, UsageError

log = logging.getLogger("jobagent.factory")

ELEMENTS_FILE = Path("/etc/jobagent/elements.toml")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--elements", type=Path, metavar="FILE", help=f"compute elements (default: {ELEMENTS_FILE})")
    common.add_argument("--json", action="store_true", help="print JSON")
    what = argparse.ArgumentParser(add_help=False)
    what.add_argument("--script", type=Path, required=True, metavar="FILE", help="pilot script, of jobagent bundle")
    what.add_argument(
        "--token", type=Path, required=True, metavar="FILE", help="IDTOKEN that pilots join the pool with"
    )
    what.add_argument("--logs", type=Path, default=Path("pilots"), metavar="DIR", help="where pilots' logs go")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    submit = actions.add_parser("submit", parents=[common, what], help="submit pilots to one compute element")
    submit.add_argument("--ce", required=True, metavar="NAME", help="its entry, or 'condor SCHEDD COLLECTOR:PORT'")
    submit.add_argument("--count", type=int, default=1, metavar="N", help="how many (default: 1)")
    actions.add_parser("status", parents=[common], help="show pilots and their glide-ins")
    remove = actions.add_parser("remove", parents=[common], help="remove all pilots of a compute element")
    remove.add_argument("--ce", required=True, metavar="NAME", help="its entry")
    keep = actions.add_parser("factory", parents=[common, what], help="keep as many pilots as waiting jobs call for")
    keep.add_argument("--interval", type=float, default=60.0, metavar="S", help="seconds between looks (default: 60)")
    keep.add_argument("--once", action="store_true", help="look once, submit, and end")
    keep.add_argument("--dry-run", action="store_true", help="say what would be submitted")
    keep.add_argument("--max-pilots", type=int, default=0, metavar="N", help="pilots in all; 0: as the elements say")


def run(args: argparse.Namespace) -> int:
    """Do the action."""
    known = _elements(args)
    if args.action == "status":
        return _status(args)
    if args.action == "remove":
        count = queues.PilotQueue().remove(elements.find(known, args.ce).name)
        print(json.dumps({"removed": count}) if args.json else f"{count} pilots removed")
        return 0
    if args.action == "submit":
        return _submit(args, elements.find(known, args.ce))
    return _factory(args, known)


def _elements(args: argparse.Namespace) -> Sequence[Element]:
    if args.elements is None and not ELEMENTS_FILE.exists():
        if args.action == "factory":
            raise ConfigurationError(
                f"no compute elements: {ELEMENTS_FILE} is missing", remedy="give --elements FILE"
            )
        return ()
    return elements.load(args.elements or ELEMENTS_FILE)


def _order(args: argparse.Namespace, element: Element) -> Order:
    for path, maker in ((args.script, "jobagent bundle"), (args.token, "condor_token_create")):
        if not path.is_file() or not os.access(path, os.R_OK):
            raise ConfigurationError(f"cannot read {path}", remedy=f"it is made by {maker}")
    slot.check_token(args.token, now_s=time.time())  # or every pilot would land in vain
    return Order(element, args.script.absolute(), args.token.absolute(), args.logs.absolute())


def _submit(args: argparse.Namespace, element: Element) -> int:
    if args.count < 1:
        raise UsageError(f"--count is {args.count}, expected 1 or more")
    order = _order(args, element)
    cluster = queues.PilotQueue().submit(order, args.count)
    text = f"{args.count} pilots to {element.name}: cluster {cluster}"
    print(json.dumps({"cluster": cluster, "count": args.count}) if args.json else text)
    return 0


def _status(args: argparse.Namespace) -> int:
    rows = queues.as_rows(queues.PilotQueue().overview(), time.time())
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        used = f"{row['cores'] - row['free_cores']}/{row['cores']} cores" if row["cores"] else ""
        print(f"{row['pilot']:<32} {row['state']:<8} {row['since_s']:>7} s  {used:<12} {row['reason']}".rstrip())
    return 0


def _factory(args: argparse.Namespace, known: Sequence[Element]) -> int:
    """Cycle until SIGTERM.  A pool that does not answer is asked again; a wrong entry ends the factory."""
    log.setLevel(logging.INFO)
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    while not ended.is_set():
        try:
            cycle(args, known)
        except SiteError as error:
            if args.once:
                raise
            log.warning("%s", error)
        if args.once:
            break
        ended.wait(args.interval)
    return 0


def cycle(args: argparse.Namespace, known: Sequence[Element]) -> None:
    """Look, decide, submit."""
    queue = queues.PilotQueue()
    now_s = time.time()
    overview = queue.overview(now_s=now_s)
    idle_cores = factory.servable_cores(overview.demands, known)
    if unfit := sum(d.cores * d.count for d in overview.demands) - idle_cores:
        log.warning("%d cores of waiting jobs fit into no pilot: too many cores, memory or time at once", unfit)
    decisions = factory.decide(
        known,
        queues.presences(overview, known, now_s),
        idle_cores=idle_cores,
        now_s=now_s,
        ceiling=args.max_pilots,
    )
    for decision in decisions:
        if decision.count and not args.dry_run:
            try:
                queue.submit(_order(args, decision.element), decision.count)
            except ConfigurationError:
                raise
            except JobAgentError as error:
                log.error("%s", error)
                continue
        if args.json:
            row = {"element": decision.element.name, "count": decision.count, "reason": decision.reason}
            print(json.dumps(row | {"idle_cores": idle_cores}), flush=True)
        else:
            noun = "pilot" if decision.count == 1 else "pilots"
            log.info("%s: %d %s (%s)", decision.element.name, decision.count, noun, decision.reason)
