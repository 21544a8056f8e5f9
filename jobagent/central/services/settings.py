"""`[central]`: the configuration of a host with central services.  It stands in that host's own file."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from jobagent.central.services.dealer import Mode
from jobagent.central.services.tracker import Network, Policy, Sites
from jobagent.config import setting
from jobagent.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class CentralSettings:
    """`[central]`: how `jobagent serve` deals."""

    sites: tuple[str, ...] = setting((), "Sites by network, as in `CERN=128.141.0.0/16,2001:1458::/32`.")
    mode: Mode = setting(Mode.DEFAULT, "How the seeder deals: `default`, `fast` or `minimal-uplink`.")
    elected: int = setting(1, "Peers of a site that are told of peers outside, where the site has no seeder.")
    token_keys: tuple[str, ...] = setting((), "Public keys (PEM, ed25519) for announce tokens, as in `alice=FILE`.")
    needs_token: bool = setting(False, "Whether every announce must bring a valid token of the package's VO.")
    needs_site: bool = setting(
        False, "Whether an announce must come from a network of `sites`, and from that of the site in its token."
    )
    busy_interval_s: int = setting(20, "Seconds between announces of a peer that downloads.")
    seeding_interval_s: int = setting(60, "Seconds between announces of a complete peer while others download.")
    idle_interval_s: int = setting(300, "Seconds between announces while nobody downloads.")
    refresh_s: float = setting(30.0, "Seconds between looks at a catalogue that is not on this host.")

    def policy(self) -> Policy:
        """The tracker's policy; raises ConfigurationError where nobody could meet it."""
        if self.needs_token and not self.token_keys:
            raise ConfigurationError("[central] needs_token without token_keys", remedy="name the VOs' keys")
        if self.needs_site and not self.sites:
            raise ConfigurationError("[central] needs_site without sites", remedy="name the sites' networks")
        return Policy(
            busy_interval_s=self.busy_interval_s,
            seeding_interval_s=self.seeding_interval_s,
            idle_interval_s=self.idle_interval_s,
            elected=self.elected,
            needs_token=self.needs_token,
            needs_site=self.needs_site,
        )


def parse_sites(entries: Iterable[str]) -> Sites:
    """Read `NAME=NETWORK[,NETWORK…]` entries; raises ConfigurationError naming the bad one."""
    networks: dict[str, list[Network]] = {}
    for entry in entries:
        name, _, nets = entry.partition("=")
        try:
            networks.setdefault(name, []).extend(ipaddress.ip_network(n.strip()) for n in nets.split(","))
        except ValueError as error:
            raise ConfigurationError(f"site {entry!r}: {error}", remedy="write NAME=NETWORK[,NETWORK…]") from error
        if not name:
            raise ConfigurationError(f"site {entry!r} has no name", remedy="write NAME=NETWORK[,NETWORK…]")
    return Sites(networks)


def read_token_keys(entries: Iterable[str]) -> Mapping[str, Ed25519PublicKey]:
    """Read `VO=FILE` entries; raises ConfigurationError naming the bad one."""
    keys: dict[str, Ed25519PublicKey] = {}
    for entry in entries:
        namespace, _, path = entry.partition("=")
        try:
            key = load_pem_public_key(Path(path).read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise ConfigurationError(
                f"token key {entry!r}: {error}", remedy="write VO=FILE with a PEM key"
            ) from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigurationError(f"token key {entry!r} is not ed25519")
        keys[namespace] = key
    return keys
