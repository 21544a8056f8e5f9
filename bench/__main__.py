"""`python -m bench`: run all benchmarks, quick or `--full`, and collect their figures in one file."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import leave_nothing_when_terminated, report, seeding, simulate
from bench.swarm_programme import GROUPS

NAMES = ("overhead", "unpack", "catalogue", "slots", "hooks", "seeding", "landing")
SWARM = "swarm-"  # and a group of `swarm_programme`, whose figures go into docs/performance.md
ALL = (*NAMES, *(SWARM + group for group in GROUPS), "simulate")  # which the groups before it check
LIMIT_S = 1800


def main() -> int:
    """Run them one after the other; a failed one is said and does not stop the rest."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(ALL)}")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench.json"), metavar="FILE", help="where figures go"
    )
    parser.add_argument("--full", action="store_true", help="thorough instead of quick")
    options = parser.parse_args()
    leave_nothing_when_terminated()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    figures, failed = {}, []
    for name in options.names or ALL:
        is_swarm = name.startswith(SWARM)
        words = ["bench.swarm_programme", name.removeprefix(SWARM)] if is_swarm else [f"bench.{name}"]
        if importlib.util.find_spec(words[0]) is None:
            failed.append(name)
            continue
        print(f"== bench.{name}", flush=True)
        output = options.json.with_name(f"bench-{name}.json")
        argv = [sys.executable, "-m", *words, "--json", str(output), *(["--full"] if options.full else [])]
        if _run(argv):
            failed.append(name)
        else:
            figures[name] = json.loads(output.read_text())
    for name, page in (("seeding", seeding.page), ("simulate", simulate.page)):
        if name in figures:
            report.put(name, page(figures[name]))
    report.write(figures[name] for name in figures if name.startswith(SWARM))
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"figures: {options.json}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _run(argv: Sequence[str]) -> int:
    """Run one and return its exit code; where it is late, or we are to end, it is asked to end and tidies up."""
    with subprocess.Popen(argv) as process:
        try:
            return process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            print(f"not done within {LIMIT_S} s", file=sys.stderr)
            return 1
        finally:
            process.terminate()


if __name__ == "__main__":
    sys.exit(main())
