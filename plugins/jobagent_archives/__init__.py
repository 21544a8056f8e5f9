"""Archives → trees: tar with zstd, gzip or xz, and data that is not unpacked.

The decompressors are imported when something is unpacked, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobagent.plugin import Context, ManifestEntry, Package, Unpacker, hookimpl


class Archives:
    """Every format of this plugin behind one unpacker."""

    formats = frozenset({"tar", "tar.zst", "tar.gz", "tar.xz", "file"})

    def unpack(self, archive: Path, package: Package, into: Path) -> Sequence[ManifestEntry]:
        """See `jobagent.plugin.Unpacker`."""
        from jobagent_archives.data import DataUnpacker
        from jobagent_archives.unpacking import TarUnpacker

        unpackers: Sequence[Unpacker] = (TarUnpacker(), DataUnpacker())
        unpacker = next(u for u in unpackers if package.archive.format in u.formats)
        return unpacker.unpack(archive, package, into)


@hookimpl
def jobagent_unpackers(context: Context) -> Sequence[Unpacker]:
    """Provide the unpackers."""
    return [Archives()]
