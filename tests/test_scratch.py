"""Job directories of agents that start, end and sweep at the same time."""

from __future__ import annotations

import threading
from pathlib import Path

from jobagent.job import scratch


def test_no_sweep_takes_a_directory_that_is_just_being_made(tmp_path: Path) -> None:
    stop = threading.Event()

    def sweeper() -> None:
        while not stop.is_set():
            scratch.sweep(tmp_path)

    sweepers = [threading.Thread(target=sweeper) for _ in range(3)]
    for thread in sweepers:
        thread.start()
    try:
        for _ in range(300):
            directory = scratch.JobDirectory(tmp_path)
            (directory.path / "work").mkdir()
            directory.remove()
    finally:
        stop.set()
        for thread in sweepers:
            thread.join()
    assert list(tmp_path.iterdir()) == []
