"""`[swarm]`: how this node takes part in the swarm."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path

from jobagent.plugin import ConfigurationError, setting


class Encryption(enum.StrEnum):
    """Policy for the (obfuscating, not protecting) protocol encryption of BitTorrent."""

    OFF = "off"
    ACCEPT = "accept"
    REQUIRE = "require"


class WebSeedPolicy(enum.StrEnum):
    """When the web servers of an archive help inside a download."""

    LAST = "last"
    RACE = "race"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """The section; rates are bytes per second and 0 means unlimited."""

    ports: str = setting("0", "Listening port or range, as in `6881-6889`; 0: any. If all are taken: download only.")
    download_rate_bytes: int = setting(
        0, "Download limit of this node in bytes/s without headers of TCP and IP, also for local peers; 0: none."
    )
    upload_rate_bytes: int = setting(
        0, "Upload limit of this node in bytes/s without headers of TCP and IP, also for local peers; 0: none."
    )
    schedule: tuple[str, ...] = setting(
        (), "Other limits at times, as in `Mon-Fri 08:00-18:00 upload=1000000 download=5000000`; the first that fits."
    )
    local_networks: tuple[str, ...] = setting(
        (),
        "Networks of the own site, as in `128.141.0.0/16`: their peers have the two limits below, not those above.",
    )
    local_download_rate_bytes: int = setting(0, "Download limit of this node from `local_networks`; 0: none.")
    local_upload_rate_bytes: int = setting(0, "Upload limit of this node to `local_networks`; 0: none.")
    connections: int = setting(200, "Peer connections of this node.")
    connections_per_package: int = setting(40, "Peer connections for one package.")
    unchoke_slots: int = setting(
        24, "Peers that are uploaded to at the same time, per node; fewer where few pieces are, or few peers give."
    )
    trackers: tuple[str, ...] = setting((), "Announce URLs; empty: `announce` below each catalogue URL.")
    token_file: Path = setting(Path(), "File with the announce token of the VO; empty: none.")
    encryption: Encryption = setting(
        Encryption.ACCEPT, "Protocol encryption: `off`, `accept` from others, or `require`."
    )
    local_discovery: bool = setting(False, "Find peers by multicast in the local network (LSD).")
    peer_exchange: bool = setting(True, "Learn peers from peers (PEX) while no tracker answers.")
    is_seeding: bool = setting(True, "Whether this node gives to others what it has.")
    no_peer_timeout_s: float = setting(15.0, "Seconds to wait for a first peer before another transport is tried.")
    stall_timeout_s: float = setting(30.0, "Seconds without any progress before another transport is tried.")
    minimum_rate_bytes: int = setting(20_000, "Bytes/s below which, for `rate_window_s`, another transport is tried.")
    rate_window_s: float = setting(60.0, "Seconds over which the minimum rate is measured.")
    web_seeds: WebSeedPolicy = setting(
        WebSeedPolicy.LAST,
        "When an archive's web servers help the peers: `last`, `never`, or in a `race` up to `web_seed_share`.",
    )
    web_seed_share: float = setting(
        0.25, "Share of an archive that web servers give in a `race`, as long as peers deliver the rest."
    )
    web_seed_after_s: float = setting(
        8.0, "Seconds without progress before the web servers help with all missing pieces; 0: never."
    )

    @property
    def port_range(self) -> tuple[int, int]:
        """First and last port.

        Raises:
            ConfigurationError: `ports` is neither a port nor a range of ports.
        """
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", self.ports)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= first <= last <= 65535:
            raise ConfigurationError(
                f"[swarm] ports is {self.ports!r}", remedy="write a port or a range, as 6881-6889"
            )
        return first, last
