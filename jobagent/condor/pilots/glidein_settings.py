"""`[glidein]`: which pool a pilot's slot joins, and for how long; a plugin, so that every command knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobagent.plugin import hookimpl, setting


@dataclass(frozen=True, slots=True)
class GlideinSettings:
    """`[glidein]`: which pool a pilot's slot joins, and for how long."""

    pool: str = setting("", "Collectors of the VO's pool, as in `vo.example.org:9618`.")
    condor: str = setting("HTCondorWorker", "Package with HTCondor's worker files.")
    agent: str = setting("", "Package with the agent; empty: the agent that the pilot brought.")
    token_file: Path = setting(Path(), "IDTOKEN for the pool; empty: $JOBAGENT_TOKEN_FILE.")
    cpus: int = setting(0, "Cores to offer; 0: as the batch system says, else 1.")
    memory_mb: int = setting(0, "Memory to offer; 0: as the batch system says, else 2000 MB a core.")
    idle_s: int = setting(600, "End after so many seconds without a job.")
    retire_s: int = setting(600, "Take no new job in the last seconds of the slot's time.")
    stop_s: int = setting(30, "Seconds before the end of the slot's time at which running jobs are sent back.")
    is_reachable: bool = setting(False, "Whether the pool can open connections to worker nodes; else through CCB.")
    condor_config: str = setting("", "More lines for the glide-in's HTCondor configuration.")


@hookimpl
def jobagent_settings() -> Mapping[str, type]:
    """Declare the section."""
    return {"glidein": GlideinSettings}
