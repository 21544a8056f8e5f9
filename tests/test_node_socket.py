"""Sockets in deep directories: batch systems nest scratch directories further than a socket's address reaches."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from jobagent.node.client import MAX_SOCKET_PATH_BYTES, ServiceError, ask, at
from jobagent.node.service import listening


@pytest.mark.parametrize("length", [MAX_SOCKET_PATH_BYTES - 10, MAX_SOCKET_PATH_BYTES + 1, 400])
def test_a_service_is_reached_at_any_depth(tmp_path: Path, length: int) -> None:
    directory = tmp_path / ("d" * max(1, (length - len(str(tmp_path)) - 6) // 2)) / "e"
    directory = directory / ("f" * max(1, length - len(str(directory)) - 6))
    directory.mkdir(parents=True)
    path = directory / "node"
    before = len(os.listdir("/proc/self/fd"))
    with listening(path, 0o600) as listener, socket.socket(socket.AF_UNIX) as client:
        at(str(path), client.connect)
        accepted, _ = listener.accept()
        accepted.close()
    assert not path.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_deep_directory_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="No such file"):
        ask(str(tmp_path / ("x" * 150) / "node"), "status")
