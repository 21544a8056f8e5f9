"""`jobagent node`: the node service of a worker node, in the foreground, as condor_master and systemd want it."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import pwd
import resource
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from jobagent import config as configuration
from jobagent import processes
from jobagent.cli import ask
from jobagent.config import NodeSettings
from jobagent.errors import ConfigurationError
from jobagent.events import Events
from jobagent.job import kit as kits
from jobagent.job import scratch
from jobagent.node.service import NodeService


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    ask.arguments(parser)
    parser.add_argument("--idle-exit", type=float, metavar="S", help="end after so many seconds without a lease")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--status", action="store_true", help="show what the running service says of itself")
    action.add_argument("--stop", action="store_true", help="end the running service; leases stay with their jobs")
    parser.add_argument("--json", action="store_true", help="print the status as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the service until SIGTERM, SIGINT, --stop or idleness."""
    config = configuration.load(args.config)
    path = ask.socket_path(args, config)
    if args.status or args.stop:
        answer = ask.ask(path, "shutdown" if args.stop else "status", {}, Events())
        print(json.dumps(answer, indent=2) if args.json else "\n".join(describe(answer) if args.status else []))
        return 0 if answer.get("ready", True) else 1
    if not args.verbose:
        logging.getLogger("jobagent").setLevel(logging.INFO)
    if args.idle_exit is not None:
        config = config.replaced("node", {"idle_exit_s": args.idle_exit}, source="--idle-exit")
    processes.keep_small()
    become(config.get(NodeSettings).user, path)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    base = kits.scratch_of(config)
    scratch.sweep(base)
    directory = scratch.JobDirectory(base)
    try:
        service = NodeService(kits.assemble(config, state=directory.path, events=Events()), path)

        def stop(number: int, frame: FrameType | None) -> None:
            service.stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, stop)
        with contextlib.closing(service):
            service.start()
            service.wait()
    finally:
        directory.remove()
    return 0


def become(name: str, socket_path: Path) -> None:
    """Drop root's rights for those of `name`, who gets the socket's directory if it is not there yet.

    Nothing where the name is empty or we are not root.

    Raises:
        ConfigurationError: There is no such user, or it cannot read this interpreter and the agent in it.
    """
    if not name or os.geteuid() != 0:
        return
    try:
        user = pwd.getpwnam(name)
    except KeyError as error:
        raise ConfigurationError(f"[node] user is {name!r}, which does not exist on this machine") from error
    if not socket_path.parent.exists():
        socket_path.parent.mkdir(mode=0o755, parents=True)
        os.chown(socket_path.parent, user.pw_uid, user.pw_gid)
    os.initgroups(name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ["HOME"] = user.pw_dir
    if closed := next((path for path in (os.__file__, __file__) if not os.access(path, os.R_OK)), ""):
        raise ConfigurationError(
            f"[node] user {name!r} cannot read {closed}", remedy="install the agent where every user can, as in /opt"
        )


def describe(status: dict[str, Any]) -> list[str]:
    """Return the status in lines for people."""
    usage, swarm = status["usage"] or {}, status["swarm"]
    lines = [
        f"{'ready' if status['ready'] else 'not ready: ' + status['reason']}",
        f"version {status['version']}, platform {status['platform']}, up {status['uptime_s']:.0f} s",
        f"{status['leases']} leases of {status['holders']} jobs",
        f"{len(status['packages'])} packages in {status['root']}",
    ]
    if usage:
        mb = {name: value >> 20 for name, value in usage.items() if name.endswith("_bytes")}
        lines.append(f"{mb['used_bytes']} of {mb['limit_bytes']} MB used, protection: {status['protection']}")
    if swarm:
        lines.append(", ".join(f"{name} {value:g}" for name, value in sorted(swarm.items())))
    return lines
