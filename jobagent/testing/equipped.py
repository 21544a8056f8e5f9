"""Execution points with the agent on them, enabled as a site's admin would: by `jobagent condor configure`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jobagent.condor.execution_point import configure
from jobagent.condor.execution_point.configure import Installation
from jobagent.node import client
from jobagent.testing import accounts
from jobagent.testing.instance import Instance
from jobagent.testing.interpreter import Interpreter
from jobagent.testing.pool import Pool

QUICK = """\
JOBAGENT_PERIOD = 2s
JOBAGENT_RETRY_S = 1
"""
# For the `central_config` of a pool.
CENTRAL_CONFIG = "\n".join(map(configure.template, (configure.ACCESS_POINT, configure.CENTRAL_MANAGER)))


class Centre(Protocol):
    """Where packages come from, such as a `World`: the catalogue's URL and the root metadata that nodes are given.

    `root` must be readable by the user of the node service.
    """

    @property
    def url(self) -> str:
        """Base URL of the catalogue."""

    @property
    def root(self) -> Path:
        """The first root metadata."""


@dataclass(frozen=True, slots=True)
class EquippedPoint:
    """One worker node: HTCondor's execution point, the agent's settings, socket and cache."""

    point: Instance
    settings: Path
    socket: Path
    cache: Path

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Ask the node service."""
        return client.ask(str(self.socket), operation, arguments, wait_for_service_s=20.0)

    @property
    def service_pid(self) -> int:
        """The process of the node service, as its peer credentials say."""
        import socket
        import struct

        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("iII", raw)[0])

    def log(self) -> str:
        """The node service's log."""
        return self.point.log("JobAgentLog")


def add(
    pool: Pool,
    name: str,
    centre: Centre,
    python: Interpreter,
    *,
    config: str = "",
    sections: Mapping[str, str] | None = None,
    catalogue: str = "",
    cache: Path | None = None,
    wait: bool = True,
    is_enabled: bool = True,
) -> EquippedPoint:
    """Start an execution point with the agent on it.

    `sections` adds lines to sections of the agent's settings, `catalogue` is another URL than the centre's, `cache`
    an existing directory for the packages.  Where it is not enabled, there is everything but HTCondor's settings.
    """
    point = pool.new_execution_point(name, config=f"{QUICK}\n{config}")
    service = accounts.of_daemons() if point.is_root else point.account
    equipped = EquippedPoint(
        point,
        settings=point.directory / "jobagent.toml",
        socket=point.directory / "run" / "node.sock",
        cache=cache or point.directory / "cache",
    )
    for directory in (equipped.cache, point.directory / "scratch"):
        directory.mkdir(mode=0o755, exist_ok=True)
        os.chown(directory, service.uid, service.gid)
    lines = {
        "site": f'name = "test"\nscratch = "{point.directory}/scratch"\naddress = "{point.address}"\n',
        "catalogue": f'urls = ["{catalogue or centre.url}"]\nroot = "{centre.root}"\nrefresh_interval_s = 1.0\n',
        "job": 'vo = "alice"\nfetch_timeout_s = 60.0\n',
        "node": f'socket = "{equipped.socket}"\nsocket_mode = 0o666\nrefresh_interval_s = 1.0\npause_s = 5.0\n'
        + (f'user = "{service.name}"\n' if point.is_root else ""),
        "plugins": 'enable = ["sharedcache"]\n',
        "sharedcache": f'root = "{equipped.cache}"\n',
    }
    for section, text in (sections or {}).items():
        lines[section] = lines.get(section, "") + text
    equipped.settings.write_text("".join(f"[{section}]\n{text}" for section, text in lines.items()))
    installation = Installation(
        python=(str(python.program),),
        code=python.code,
        libexec=point.directory / "libexec",
        config_directory=point.directory / "config.d",
        socket=equipped.socket,
        settings=equipped.settings,
        cache=equipped.cache,
    )
    if is_enabled:
        configure.write(configure.plan(installation))
    point.start()
    if wait:
        pool.wait_for_machines()
    return equipped
