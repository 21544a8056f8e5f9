"""`jobagent env JOB`: print the environment that a job or packages would give, as shell lines or JSON."""

from __future__ import annotations

import argparse
import json
import os
import shlex

from jobagent import config as configuration
from jobagent.cli import jobfile
from jobagent.cli.hold import held
from jobagent.cli.run import base_environment


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    jobfile.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of shell lines")


def run(args: argparse.Namespace) -> int:
    """Print the variables; JOB and its arguments may also be packages, as `VO_ALICE@ROOT::v6-36`.

    With a private cache the paths are those of this call and are gone afterwards; with the shared cache they stay
    until the package is evicted.
    """
    is_job = "::" not in args.job or os.path.lexists(args.job)
    words = () if is_job else (args.job, *args.arguments)
    with held(args, args.job if is_job else "", packages=words) as packages:
        variables = packages.environment(base_environment())
        is_shared = packages.kit.cache.is_shared
    if args.json:
        print(json.dumps(variables, indent=2, sort_keys=True))
        return 0
    if not is_shared:
        source = configuration.load(args.config).source
        print(f"# private cache ({source}): these paths are gone now; enable the plugin sharedcache to keep them")
    for name in sorted(variables):
        print(f"export {name}={shlex.quote(variables[name])}")
    return 0
