"""What packages' own set-up files do to the environment: alibuild's init.sh, modulefiles, `.alienEnvironment`.

Files of a known form are read; only what cannot be read is run, in a sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobagent.plugin import Context, EnvironmentProvider, hookimpl
from jobagent_environment.providers import AlienEnvironment, InitSh, Modulefile
from jobagent_environment.settings import EnvironmentSettings


@hookimpl
def jobagent_settings() -> Mapping[str, type]:
    """Declare `[environment]`."""
    return {"environment": EnvironmentSettings}


@hookimpl
def jobagent_environments(context: Context) -> Sequence[EnvironmentProvider]:
    """Provide the readers."""
    settings = context.config.get(EnvironmentSettings)
    return [InitSh(settings), Modulefile(context.events), AlienEnvironment(settings)]
