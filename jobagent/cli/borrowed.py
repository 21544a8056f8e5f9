"""All providers of an agent for the length of one command that runs no job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobagent.cli.progress import ProgressDisplay
from jobagent.config import Config
from jobagent.events import Events
from jobagent.job import kit as kits
from jobagent.job import scratch
from jobagent.job.kit import Kit


@contextmanager
def borrowed_kit(config: Config) -> Iterator[Kit]:
    """Assemble a kit in a directory of its own, and remove both in the end."""
    base = kits.scratch_of(config)
    scratch.sweep(base)
    directory = scratch.JobDirectory(base)
    events = Events()
    try:
        with ProgressDisplay(events):
            kit = kits.assemble(config, state=directory.path, events=events)
            try:
                yield kit
            finally:
                kit.close()
    finally:
        directory.remove()
