"""Who a process is on Linux: start time, so that a reused pid is not taken for it, and the boot it lived in.

Reads /proc; knows no leases.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc; musl has no mallopt
_LARGE_BYTES = 1 << 20
_ENDED_STATES = frozenset("ZXx")


def start_ticks(pid: int) -> int:
    """Return the start time of a running process in clock ticks since boot (field 22 of proc(5) stat); 0 if ended."""
    fields = _stat(pid)
    return 0 if not fields or fields[0].decode() in _ENDED_STATES else int(fields[19])


def parent(pid: int) -> int:
    """Return the pid of the parent; 0 where there is none to be seen."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def is_running(pid: int, ticks: int) -> bool:
    """Whether the process with this pid and start time still runs; a zombie has ended."""
    return ticks != 0 and start_ticks(pid) == ticks


def boot_id() -> str:
    """Return the kernel's random name of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pid_namespace() -> int:
    """Return the inode number of this process's pid namespace: pids mean nothing across two of them."""
    return os.stat("/proc/self/ns/pid").st_ino


def descendants(pid: int) -> list[int]:
    """Return the living descendants of a process, parents before children; a snapshot that may be out of date."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := _parent(int(name))):
            children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    pending = [pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def command_name(pid: int) -> str:
    """Return the name of the program that a process runs, cut to 15 bytes (proc(5) comm); empty where it ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat[stat.rfind(b")") + 2 :].split()[1])


def keep_small() -> None:
    """Keep what this process will use small: it stays beside payloads, which need the memory.

    All threads allocate from two arenas: one for each thread, as glibc has it, leaves holes in each.  What is large
    gets pages of its own, also after the first that was freed: the network's buffers go back when they shrink.  The
    driver of security modules, 3 MB that the TUF library loads wherever it is installed, stays out: nothing is signed
    on nodes.
    """
    sys.modules.setdefault("pkcs11", None)  # type: ignore[arg-type]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(M_TRIM_THRESHOLD, _LARGE_BYTES)


def give_back_memory() -> None:
    """Return to the system what this process freed: payloads need it, and glibc would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _stat(pid: int) -> list[bytes]:
    """Return the fields of proc(5) stat from the third on (the state); empty where the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    # The command name is in brackets and may hold any byte: fields are counted from its last bracket.
    return stat[stat.rfind(b")") + 2 :].split()
