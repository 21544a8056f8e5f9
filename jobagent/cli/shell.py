"""`jobagent shell Name::version…`: a shell with packages, as alienv's users know it."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess

from jobagent.cli.hold import held


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("packages", nargs="+", metavar="PACKAGE", help="VO_ORG@Name::version or Name/version")
    parser.add_argument("-c", dest="script", metavar="COMMAND", help="run this command instead of a prompt")


def run(args: argparse.Namespace) -> int:
    """Run the shell; its exit code is ours.  The packages are seeded until it ends."""
    with held(args, "", packages=tuple(args.packages)) as packages:
        environment = packages.environment(dict(os.environ))
        names = " ".join(str(i.package.id) for i in packages.prepared.installed)
        shell = os.environ.get("SHELL") or "/bin/sh"
        argv = [shell, "-c", args.script] if args.script else [shell, "-i"]
        if not args.script:
            print(f"jobagent: shell with {names}; leave with exit")
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the shell's business
        try:
            return subprocess.run(argv, env=environment, check=False).returncode
        finally:
            signal.signal(signal.SIGINT, previous)
