"""`[environment]`: how packages' own set-up scripts are treated."""

from __future__ import annotations

from dataclasses import dataclass

from jobagent.plugin import setting


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """`[environment]`: set-up scripts of packages."""

    script_timeout_s: float = setting(20.0, "Seconds that one set-up script of a package may take.")
    unconfined_scripts: bool = setting(
        False, "Run set-up scripts as the agent's user where bubblewrap does not work; only where one VO is served."
    )
