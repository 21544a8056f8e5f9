"""`jobagent glidein`: what the pilot script starts in a batch slot."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path

from jobagent import config as configuration
from jobagent.condor.pilots import offspring
from jobagent.condor.pilots.glidein import Glidein
from jobagent.condor.pilots.glidein_settings import GlideinSettings
from jobagent.condor.pilots.slot import uptime_s
from jobagent.errors import ConfigurationError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where to work; default: $JOBAGENT_PILOT_DIR")


def run(args: argparse.Namespace) -> int:
    """Run until idle, out of time, or told to end."""
    file = args.config or Path(os.environ.get(configuration.ENVIRONMENT_VARIABLE, ""))
    if file == Path():
        raise ConfigurationError("the glide-in needs a configuration file", remedy="give --config")
    config = configuration.load(file)
    config.declare("glidein", GlideinSettings)
    pilot_log(os.environ.get("JOBAGENT_PILOT_ID", "-"), os.environ.get("JOBAGENT_PILOT_STARTED_CS", ""))
    offspring.adopt_orphans()
    named = args.directory or os.environ.get("JOBAGENT_PILOT_DIR")
    if named:
        return Glidein(config, file, os.environ, Path(named)).run()
    with tempfile.TemporaryDirectory(prefix="jobagent-glidein-") as directory:
        return Glidein(config, file, os.environ, Path(directory)).run()


def pilot_log(pilot: str, started_cs: str) -> None:
    """Write log lines as the pilot script does, with the seconds since its start."""
    started_s = int(started_cs) / 100 if started_cs.isdecimal() else uptime_s()

    class Format(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
            since_s = uptime_s() - started_s
            return f"{now} glidein {pilot} +{since_s:.2f} {record.levelname} {record.getMessage()}"

    logger = logging.getLogger("jobagent.glidein")
    handler = logging.StreamHandler()
    handler.setFormatter(Format())
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
