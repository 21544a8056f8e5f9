"""The swarm plugin: packages come from the other nodes that want them.

libtorrent is imported, and its session made, when something is fetched, or a second after there is something to give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobagent.plugin import Context, Transport, hookimpl
from jobagent_swarm.late import LateSwarm
from jobagent_swarm.settings import SwarmSettings


@hookimpl
def jobagent_settings() -> Mapping[str, type]:
    """Declare `[swarm]`."""
    return {"swarm": SwarmSettings}


@hookimpl
def jobagent_transports(context: Context) -> Sequence[Transport]:
    """Provide the swarm."""
    return [LateSwarm(context)]
