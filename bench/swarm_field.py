"""One experiment of `bench.swarm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Field:
    """One experiment.  Rates are bytes per second; `slots` clients are on a host, `is_shared` in one session.

    `swarm` and `central` are `[swarm]` of clients and server, `settings` is `[central]`.  A site's link to the wide
    area carries `site_rate` (0: anything).  With `is_closed` nodes reach nothing outside their site but the server.
    """

    clients: int = 20
    package_bytes: int = 12_000_000
    client_rate: int = 1_000_000
    server_rate: int = 2_500_000
    is_shaped: bool = False
    peer: str = "agent"
    mode: str = "default"
    arrivals_s: float = 0.0
    slots: int = 1
    is_shared: bool = False
    sites: int = 0
    site_rate: int = 0
    has_site_seeders: bool = False
    is_closed: bool = False
    timeout_s: float = 240.0
    swarm: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def bound_s(self) -> float:
        """No distribution can be faster."""
        size, hosts = self.package_bytes, self.clients / self.slots
        whole = self.clients * size / (self.server_rate + hosts * self.client_rate)
        per_host = self.slots * size / self.client_rate if self.is_shaped else 0.0
        if self.slots > 1:
            whole, per_host = hosts * size / (self.server_rate + hosts * self.client_rate), size / self.client_rate
        into_site = size / self.site_rate if self.site_rate else 0.0
        return max(into_site, size / self.server_rate, whole, per_host if self.is_shaped else 0.0)
