"""Data that is not unpacked: the tree of a `file` package is a directory with the archive in it, under its name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from jobagent.plugin import HostileArchive, ManifestEntry, Package, manifest
from jobagent_archives.unpacking import disk_errors

_FICLONE = 0x40049409  # ioctl_ficlonerange(2)
_NOT_HERE = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


class DataUnpacker:
    """Puts the archive itself into the tree, without a second copy where the file system can."""

    formats = frozenset({"file"})

    def unpack(self, archive: Path, package: Package, into: Path) -> Sequence[ManifestEntry]:
        """See `jobagent.plugin.Unpacker`."""
        name = manifest.checked_path(package.archive.file_name)
        if "/" in name:
            raise HostileArchive(f"data package has the file name {name[:200]!r}")
        target = into / name
        with disk_errors(package, into):
            _clone(archive, target)
        return [ManifestEntry(name, "f", 0o644, target.stat().st_size, manifest.hash_file(target))]


def _clone(source: Path, target: Path) -> None:
    """Make `target` by sharing blocks, else as a hard link, else as a copy."""
    with contextlib.suppress(OSError), open(source, "rb") as reading, open(target, "xb") as writing:
        fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        os.fchmod(writing.fileno(), 0o644)
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        shutil.copyfile(source, target)
    os.chmod(target, 0o644)
