"""The HTTP plugin: alternate PFNs of archives, and input files, over http, https and file URLs.

requests is imported when something is fetched, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobagent.plugin import Context, InputSource, Transport, hookimpl
from jobagent_http.settings import HttpSettings


@hookimpl
def jobagent_settings() -> Mapping[str, type]:
    """Declare `[http]`."""
    return {"http": HttpSettings}


@hookimpl
def jobagent_transports(context: Context) -> Sequence[Transport]:
    """Provide the transport of last resort."""
    from jobagent_http.transport import Http

    return [Http(context)]


@hookimpl
def jobagent_inputs(context: Context) -> Sequence[InputSource]:
    """Provide input files by URL and path."""
    from jobagent_http.inputs import Inputs

    return [Inputs(context)]
