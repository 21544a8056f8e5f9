"""Waiting for the ends of processes and connections: one thread, one epoll, no polling.

A pidfd becomes readable when its process ends, however it ends, and cannot mean another process: pids are reused,
pidfds are not.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass

from jobagent.processes import start_ticks

log = logging.getLogger("jobagent.node")


@dataclass(frozen=True, slots=True)
class _Watch:
    handle: int
    callback: Callable[[], None]
    events: int
    is_ours: bool  # the descriptor, to be closed


class Watcher:
    """Calls back, in its own thread, when something ends.  Callbacks return promptly and do not raise."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, _Watch] = {}  # by descriptor
        self._descriptors: dict[int, int] = {}  # by handle: numbers of descriptors are reused, handles are not
        self._handles = itertools.count(1)
        self._guard = threading.Lock()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def process(self, pid: int, ticks: int, ended: Callable[[], None]) -> int | None:
        """Call `ended` once when the process ends; return a handle, or None where it has ended already."""
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if start_ticks(pid) != ticks:  # the pid is another's by now
            os.close(descriptor)
            return None
        return self._watch(descriptor, select.EPOLLIN, ended, is_ours=True)

    def connection(self, descriptor: int, closed: Callable[[], None]) -> int:
        """Call `closed` once when the peer of a socket goes away; forget it before the socket is closed."""
        return self._watch(descriptor, select.EPOLLHUP, closed, is_ours=False)

    def forget(self, handle: int) -> None:
        """Stop waiting; idempotent."""
        with self._guard:
            descriptor = self._descriptors.get(handle)
            if descriptor is not None:
                self._drop(descriptor)

    def close(self) -> None:
        """End the thread and close what is watched."""
        os.write(self._wake_write, b"x")
        self._thread.join()
        with self._guard:
            for descriptor in list(self._watched):
                self._drop(descriptor)
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _watch(self, descriptor: int, events: int, callback: Callable[[], None], *, is_ours: bool) -> int:
        with self._guard:
            handle = next(self._handles)
            self._watched[descriptor] = _Watch(handle, callback, events, is_ours)
            self._descriptors[handle] = descriptor
            self._epoll.register(descriptor, events | select.EPOLLONESHOT)
        return handle

    def _drop(self, descriptor: int) -> _Watch | None:
        watch = self._watched.pop(descriptor, None)
        if watch is not None:
            del self._descriptors[watch.handle]
            self._epoll.unregister(descriptor)
            if watch.is_ours:
                os.close(descriptor)
        return watch

    def _has_ended(self, descriptor: int) -> bool:
        """Ask again: since epoll spoke, the number may have become another watch's descriptor."""
        watch = self._watched.get(descriptor)
        if watch is None:
            return False
        poll = select.poll()
        poll.register(descriptor, watch.events)
        if poll.poll(0):
            return True
        self._epoll.modify(descriptor, watch.events | select.EPOLLONESHOT)
        return False

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._wake_read:
                    return
                with self._guard:
                    watch = self._drop(descriptor) if self._has_ended(descriptor) else None
                if watch is not None:
                    try:
                        watch.callback()
                    except Exception:  # a border: one failing release must not end the watch over all others
                        log.exception("callback at the end of a process or connection failed")
