"""The swarm plugin: packages come from the other nodes that want them.

libtorrent is imported when an agent asks for transports, its session is made at the first fetch or seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobagent.plugin import Context, Transport, hookimpl
from jobagent_swarm.settings import SwarmSettings


@hookimpl
def jobagent_settings() -> Mapping[str, type]:
    """Declare `[swarm]`."""
    return {"swarm": SwarmSettings}


@hookimpl
def jobagent_transports(context: Context) -> Sequence[Transport]:
    """Provide the swarm."""
    from jobagent_swarm.swarm import Swarm

    return [Swarm(context)]
