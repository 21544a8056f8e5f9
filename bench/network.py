"""A small network of shaped hosts: namespaces on one bridge, each link limited by the kernel (tbf) both ways.

TCP is Reno in all of them, whatever the machine prefers: every kernel has it, and on links this slow Cubic, the
default of most, does the same.

Needs root.  Names carry the pid of their maker, so that what a killed run left is found and removed by the next.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "jabench"
BURST_BYTES = 16384
QUEUE_MS = 60


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with one address and a link of `rate_bits` per second in each direction."""

    namespace: str
    address: str
    rate_bits: int

    def argv(self, *words: str) -> list[str]:
        """The command that runs `words` on this host."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def sent_bytes(self) -> int:
        """Wire bytes that left the host."""
        path = "/sys/class/net/eth0/statistics/tx_bytes"
        return int(_run(self.argv("cat", path)))


def is_possible() -> bool:
    """Whether this user may make namespaces here."""
    if os.geteuid() != 0:
        return False
    name = f"{PREFIX}-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        _run(["ip", "netns", "del", name])
    return made.returncode == 0


@contextlib.contextmanager
def hosts(
    rates_bits: Sequence[int], *, sites: Sequence[int] | None = None, site_bits: int = 0, closed: Collection[int] = ()
) -> Iterator[list[Host]]:
    """Make one host per rate; all go with the block.

    `sites[i]` is the site of host i and the third byte of its address; site 0 is the wide area itself.  Each other
    site is a bridge with one link to the wide area, of `site_bits` per second in each direction where that is not 0,
    whose bytes `site_received` counts.  The hosts with the numbers `closed` reach, and are reached by, their own site
    and host 0 only.
    """
    sweep()
    switch = _switch()
    made: list[str] = []
    try:
        made.append(switch)
        _run(["ip", "netns", "add", switch])
        places = list(sites or [0] * len(rates_bits))
        for site in sorted({0, *places}):
            _add_bridge(switch, site, site_bits)
        result = []
        for number, (rate, site) in enumerate(zip(rates_bits, places, strict=True)):
            name = f"{PREFIX}-{os.getpid()}-{number}"
            made.append(name)
            result.append(_plug(name, switch, number, site, rate))
            if number in closed:
                # a socket bound to a device takes what has no route for a neighbour: it needs a route that says no
                _inside(name, "route", "replace", "unreachable", "10.77.0.0/16")
                _inside(name, "route", "add", f"10.77.{site}.0/24", "dev", "eth0")
                _inside(name, "route", "add", result[0].address, "dev", "eth0")
        yield result
    finally:
        for name in reversed(made):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def site_received(site: int) -> int:
    """Wire bytes that came into a site from the wide area."""
    words = ["ip", "netns", "exec", _switch(), "cat", f"/sys/class/net/down{site}/statistics/rx_bytes"]
    return int(_run(words))


def _switch() -> str:
    return f"{PREFIX}-{os.getpid()}-switch"


def _add_bridge(switch: str, site: int, rate_bits: int) -> None:
    """Add the bridge of a site and its link to the wide area: `up` there, `down` in the site."""
    _inside(switch, "link", "add", f"bridge{site}", "type", "bridge")
    _inside(switch, "link", "set", f"bridge{site}", "up")
    if site:
        _inside(switch, "link", "add", f"up{site}", "type", "veth", "peer", "name", f"down{site}")
        _inside(switch, "link", "set", f"up{site}", "master", "bridge0", "up")
        _inside(switch, "link", "set", f"down{site}", "master", f"bridge{site}", "up")
        if rate_bits:
            for end in (f"up{site}", f"down{site}"):
                _limit(switch, end, rate_bits)


def sweep() -> None:
    """Remove what runs that are gone have left."""
    for line in _run(["ip", "netns", "list"]).splitlines():
        name = line.split()[0] if line else ""
        parts = name.split("-")
        if len(parts) == 3 and parts[0] == PREFIX and parts[1].isdigit() and not Path("/proc", parts[1]).exists():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _plug(name: str, switch: str, number: int, site: int, rate_bits: int) -> Host:
    port, address = f"port{number}", f"10.77.{site}.{number + 1}"
    _run(["ip", "netns", "add", name])
    _inside(switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
    _inside(switch, "link", "set", port, "master", f"bridge{site}", "up")
    _inside(name, "link", "set", "lo", "up")
    _inside(name, "addr", "add", f"{address}/16", "dev", "eth0")
    _inside(name, "link", "set", "eth0", "up")
    _run(["ip", "netns", "exec", name, "sh", "-c", "echo reno >/proc/sys/net/ipv4/tcp_congestion_control"])
    _limit(name, "eth0", rate_bits)
    _limit(switch, port, rate_bits)
    return Host(name, address, rate_bits)


def _limit(namespace: str, device: str, rate_bits: int) -> None:
    limit = ("root", "tbf", "rate", str(rate_bits), "burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms")
    _run(["ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", device, *limit])


def _inside(namespace: str, *words: str) -> None:
    _run(["ip", "-n", namespace, *words])


def _run(words: Sequence[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout
