"""Fuzz every reader of strangers' bytes by coverage, so many seconds each: `make fuzz`.

    python -m tests.fuzz [--seconds N] [TARGET…]

Each target runs in a process of its own.  What it finds is printed and left as `crash-TARGET-…` in this directory;
the exit code is then 1.  `make test` does not run it: a finding becomes an ordinary test.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAX_BYTES = 6000
MAX_MB = 1500
MAX_SECONDS_AN_INPUT = 2.0
FAST = "/dev/shm"  # a temporary directory on disk would take most of the time


def main() -> int:
    """Run all targets, or those that are named."""
    from tests.fuzz.seeds import seeds

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=20, help="for each target (default 20)")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    args, rest = parser.parse_known_args()
    if args.target:
        return fuzz(args.target, args.directory, [*rest, *args.targets])
    found = seeds()
    wrong = [name for name in args.targets or found if not run(name, found[name], args.seconds)]
    print(
        f"{len(args.targets or found)} targets, {len(wrong)} with findings{': ' if wrong else ''}{', '.join(wrong)}"
    )
    return 1 if wrong else 0


def run(name: str, examples: list[bytes], seconds: int) -> bool:
    """Fuzz one target in a process; return whether nothing was found."""
    with tempfile.TemporaryDirectory(dir=FAST if Path(FAST).is_dir() else None) as base:
        corpus, directory = Path(base, "corpus"), Path(base, "files")
        corpus.mkdir()
        directory.mkdir()
        for number, example in enumerate(examples):
            (corpus / str(number)).write_bytes(example)
        limits = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-rss_limit_mb={MAX_MB}", "-timeout=60"]
        command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--directory", str(directory), *limits]
        command += [f"-artifact_prefix=crash-{name}-", str(corpus)]
        both = subprocess.STDOUT
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=both, text=True, errors="replace", check=False)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("INFO: ")]
    last = [line for line in lines if line.startswith("Done ")]
    print(f"{name:12} {last[-1] if last else 'a finding'}", flush=True)
    if done.returncode:
        print("\n".join(lines[-40:]))
    return done.returncode == 0


def fuzz(name: str, directory: Path, options: list[str]) -> int:
    """Fuzz in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["jobagent", "jobagent_archives", "jobagent_environment"]):
        from tests.fuzz.targets import Targets
    target = Targets(directory).all[name]

    def once(data: bytes) -> None:
        start = time.process_time()  # the machine may be busy
        target(data)
        assert time.process_time() - start < MAX_SECONDS_AN_INPUT, "slow"

    atheris.Setup([sys.argv[0], *options], once)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
