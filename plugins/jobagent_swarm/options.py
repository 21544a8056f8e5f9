"""What a libtorrent session is made from: the project's settings, and the reasons for them.

The measurements behind them stand in docs/performance.md.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import libtorrent as lt

from jobagent_swarm.limits import Limits
from jobagent_swarm.settings import Encryption, SwarmSettings

VERSION_TAG = "0100"


class Role(enum.StrEnum):
    """Who we are to other peers, by the letters of the peer id (`-JA0100-`): receivers account origins by it."""

    AGENT = "JA"
    SEEDER = "JS"

    @property
    def fingerprint(self) -> str:
        """The first eight bytes of the peer id."""
        return f"-{self}{VERSION_TAG}-"


@dataclass(frozen=True, slots=True)
class Options:
    """What one session is made from; `addresses` empty means all interfaces."""

    role: Role
    settings: SwarmSettings
    addresses: tuple[str, ...] = ()
    trackers: tuple[str, ...] = ()
    extra: Mapping[str, int | bool | str] | None = None


FIXED: Mapping[str, int | bool | str] = {
    "user_agent": "jobagent/0.1",
    "listen_system_port_fallback": False,
    "listen_queue_size": 200,
    "alert_mask": int(
        lt.alert_category.error
        | lt.alert_category.status
        | lt.alert_category.storage
        | lt.alert_category.tracker
        | lt.alert_category.block_progress
        | lt.alert_category.piece_progress
        | lt.alert_category.peer
    ),
    "alert_queue_size": 200_000,  # 300 MB are 38,000 alerts; dropped ones would break the accounting
    **dict.fromkeys(("enable_dht", "enable_upnp", "enable_natpmp"), False),
    **dict.fromkeys(("enable_outgoing_utp", "enable_incoming_utp"), False),
    "local_service_announce_interval": 30,
    "unchoke_interval": 2,
    "optimistic_unchoke_interval": 4,
    "rate_limit_ip_overhead": False,  # limits count what is sent, as the seeder's do, not guessed headers
    "send_redundant_have": False,  # half of the small packets of a crowd
    "aio_threads": 1,
    "hashing_threads": 1,
    "smooth_connects": False,
    "connection_speed": 200,
    "torrent_connect_boost": 60,
    "allow_multiple_connections_per_ip": True,  # eight slots of one node
    "announce_to_all_trackers": True,
    "announce_to_all_tiers": True,
    "min_announce_interval": 5,  # libtorrent's 300 s would overrule a tracker's short interval
    "tracker_backoff": 50,
    "tracker_completion_timeout": 10,
    "tracker_receive_timeout": 5,
    "tracker_maximum_response_length": 64 << 10,
    "stop_tracker_timeout": 1,
    "max_concurrent_http_announces": 20,
    "num_want": 80,
    "peer_connect_timeout": 5,
    "handshake_timeout": 5,
    "request_timeout": 20,
    "request_queue_time": 1,  # s; what is asked of a peer that turns slow waits for it
    "min_reconnect_time": 5,
    "max_failcount": 5,
    "urlseed_timeout": 10,
    "urlseed_max_request_bytes": 1 << 20,  # what a web server may give beyond its share
    "urlseed_wait_retry": 5,
    "validate_https_trackers": True,
    "ssrf_mitigation": True,
}
"""libtorrent's settings that are the same at every site."""


def settings_pack(options: Options) -> dict[str, int | bool | str]:
    """Return libtorrent's settings, but for the rates."""
    site = options.settings
    first, last = site.port_range
    # 0 forced, 1 enabled, 2 disabled; a try with encryption and one without would cost each connection a round
    incoming = {Encryption.OFF: 2, Encryption.ACCEPT: 1, Encryption.REQUIRE: 0}[site.encryption]
    outgoing = 0 if site.encryption is Encryption.REQUIRE else 2
    pack: dict[str, int | bool | str] = {
        **FIXED,
        "peer_fingerprint": options.role.fingerprint,
        "listen_interfaces": interfaces(options.addresses, first),
        "outgoing_interfaces": ",".join(options.addresses),
        "max_retry_port_bind": last - first,
        "enable_lsd": site.local_discovery,
        "in_enc_policy": incoming,
        "out_enc_policy": outgoing,
        "connections_limit": site.connections,
        "unchoke_slots_limit": site.unchoke_slots,
    }
    return pack | dict(options.extra or {})


def interfaces(addresses: tuple[str, ...], port: int) -> str:
    """Return addresses with a port as libtorrent reads them; none are all interfaces."""
    hosts = [f"[{a}]" if ":" in a else a for a in addresses] or ["0.0.0.0", "[::]"]
    return ",".join(f"{host}:{port}" for host in hosts)


def rates(limits: Limits) -> dict[str, int | bool | str]:
    """Return the settings of these limits."""
    return {"upload_rate_limit": limits.upload_bytes, "download_rate_limit": limits.download_bytes}
