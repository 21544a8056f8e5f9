"""Where the file of a torrent is while others read it, also while it moves.

libtorrent opens the file for every block.  In a moment in which it is not there it refuses what it is asked for and
says that it does not have the piece (`lt_donthave`), which the peer believes until the connection ends: peers that
are about to complete wait for a reconnection.  So libtorrent itself renames the file, between two reads, and its
directory is named by a descriptor, which stays true when somebody moves the directory.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import libtorrent as lt

QUERY_SAVE_PATH = 1 << 7  # missing in the bindings
MOVE_LOOKS, MOVE_LOOK_S = 2000, 0.001
_DESCRIPTORS = Path("/proc/self/fd")


class Place:
    """A directory by descriptor; close it when nothing names it any more."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        path = _DESCRIPTORS / str(self._descriptor)
        self.path = path if path.exists() else directory

    def close(self) -> None:
        """Let it go; idempotent, and from any thread: a number closed twice could be another's by then."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def settle(handle: lt.torrent_handle, part: Path, target: Path, wait_until_renamed: Callable[[], None]) -> Place:
    """Give the complete file its name `target`, beside `part`, and return the place under which the torrent has it.

    Raises:
        OSError: The file cannot be renamed.
    """
    place = Place(target.parent)
    try:
        target.unlink(missing_ok=True)  # libtorrent replaces nothing
        handle.move_storage(str(place.path), lt.move_flags_t.reset_save_path_unchecked)
        handle.rename_file(0, target.name)
        wait_until_renamed()
        if part.exists():
            os.replace(part, target)
    except BaseException:
        place.close()
        raise
    return place


def move(handle: lt.torrent_handle, name: str, path: Path) -> None:
    """Point a torrent, whose file was called `name`, to where that now is; return when it is read there."""
    handle.move_storage(str(path.parent), lt.move_flags_t.reset_save_path_unchecked)
    if name != path.name:
        handle.rename_file(0, path.name)
    with contextlib.suppress(RuntimeError):  # it left the session
        for _ in range(MOVE_LOOKS):
            if Path(handle.status(QUERY_SAVE_PATH).save_path) == path.parent:
                break
            time.sleep(MOVE_LOOK_S)
