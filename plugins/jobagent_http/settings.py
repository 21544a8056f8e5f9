"""`[http]`: alternate sources over HTTP, and input files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobagent.plugin import setting


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The section.  Proxies are those of the environment: $http_proxy, $https_proxy, $no_proxy."""

    timeout_s: float = setting(10.0, "Seconds to connect, and to wait for the next bytes.")
    minimum_rate_bytes: int = setting(20_000, "Bytes/s below which, for `rate_window_s`, the next mirror is tried.")
    rate_window_s: float = setting(30.0, "Seconds over which the minimum rate is measured.")
    ca_file: Path = setting(Path(), "CA certificates (PEM) for https; empty: those that come with the agent.")
    max_input_bytes: int = setting(20_000_000_000, "Largest input file that is fetched by URL.")
    gateways: tuple[str, ...] = setting(
        (), "Web servers for PFNs of other schemes, as in `osdf=https://osdf-director.osg-htc.org`: path for path."
    )
