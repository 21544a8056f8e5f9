"""Archives → trees: tar with zstd, gzip or xz, and data that is not unpacked."""

from __future__ import annotations

from collections.abc import Sequence

from jobagent.plugin import Context, Unpacker, hookimpl
from jobagent_archives.data import DataUnpacker
from jobagent_archives.unpacking import TarUnpacker


@hookimpl
def jobagent_unpackers(context: Context) -> Sequence[Unpacker]:
    """Provide the unpackers."""
    return [TarUnpacker(), DataUnpacker()]
