"""Waiting for the ends of processes and connections: one thread, one epoll, no polling.

A pidfd becomes readable when its process ends, however it ends, and cannot mean another process: pids are reused,
pidfds are not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable

from jobagent.processes import start_ticks

log = logging.getLogger("jobagent.node")


class Watcher:
    """Calls back, in its own thread, when something ends.  Callbacks return promptly and do not raise."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._owned: set[int] = set()
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
        with self._guard:
            self._callbacks[descriptor] = ended
            self._owned.add(descriptor)
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)
        return descriptor

    def connection(self, descriptor: int, closed: Callable[[], None]) -> int:
        """Call `closed` once when the peer of a socket goes away; forget it before the socket is closed."""
        with self._guard:
            self._callbacks[descriptor] = closed
        self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLONESHOT)
        return descriptor

    def forget(self, handle: int) -> None:
        """Stop waiting; idempotent."""
        with self._guard:
            if self._callbacks.pop(handle, None) is None:
                return
            self._drop(handle)

    def close(self) -> None:
        """End the thread and close what is watched."""
        os.write(self._wake_write, b"x")
        self._thread.join()
        with self._guard:
            for handle in list(self._callbacks):
                self._drop(handle)
            self._callbacks.clear()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _drop(self, handle: int) -> None:
        with contextlib.suppress(OSError):
            self._epoll.unregister(handle)
        if handle in self._owned:
            self._owned.discard(handle)
            os.close(handle)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._wake_read:
                    return
                with self._guard:
                    callback = self._callbacks.pop(descriptor, None)
                    if callback is not None:
                        self._drop(descriptor)
                if callback is not None:
                    try:
                        callback()
                    except Exception:  # a border: one failing release must not end the watch over all others
                        log.exception("callback at the end of a process or connection failed")
