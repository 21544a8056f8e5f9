"""What the commands that take a JOB share: its arguments, and reading and parsing it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobagent.contracts import Parser
from jobagent.errors import JobSyntaxError
from jobagent.job.requirements import MAX_JOB_BYTES, parse
from jobagent.model import Job


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add JOB, its arguments and --dialect."""
    parser.add_argument("job", metavar="JOB", help="AliEn JDL, HTCondor submit file or ClassAd; - for standard input")
    parser.add_argument("arguments", nargs="*", metavar="ARG", help="replace $1 … $n in a JDL")
    parser.add_argument("--dialect", default="", help="jdl, submit or classad; default: by content")


def read(name: str, arguments: Sequence[str], dialect: str, parsers: Sequence[Parser]) -> Job:
    """Read and parse the job; raises JobSyntaxError."""
    try:
        if name == "-":
            data, base = sys.stdin.buffer.read(MAX_JOB_BYTES + 1), Path.cwd()
        else:
            path = Path(name)
            with path.open("rb") as stream:
                data = stream.read(MAX_JOB_BYTES + 1)
            base = path.resolve().parent
        text = data.decode()
    except OSError as error:
        raise JobSyntaxError(
            f"cannot read job {name}: {error.strerror}", remedy="name a file, or - for stdin"
        ) from error
    except UnicodeDecodeError as error:
        raise JobSyntaxError(f"job {name} is not UTF-8 text (byte {error.start})") from error
    return parse(text, parsers, dialect=dialect, arguments=arguments, base_directory=base)
