"""Whom a pool and its jobs run as, where tests are started by root."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobagent.errors import ConfigurationError

# Accounts of every Debian that own no files: one for HTCondor's daemons (CONDOR_IDS), one that submits jobs.
_DAEMON_NAMES = ("condor", "daemon", "bin")
_USER_NAMES = ("games", "www-data", "mail")


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine."""

    name: str
    uid: int
    gid: int

    @property
    def popen(self) -> dict[str, Any]:
        """Arguments for `subprocess` that run a program as this user; empty where we are it already."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def current() -> Account:
    """Return the account of this process."""
    return _by_name(pwd.getpwuid(os.geteuid()).pw_name)


def of_daemons() -> Account:
    """Return an account that a root-started HTCondor drops to, or our own where we are not root."""
    return _first(_DAEMON_NAMES) if os.geteuid() == 0 else current()


def of_user() -> Account:
    """Return an unprivileged account that submits jobs, or our own where we are not root."""
    return _first(_USER_NAMES) if os.geteuid() == 0 else current()


def _first(names: Sequence[str]) -> Account:
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in names:
        if name in known:
            return _by_name(name)
    raise ConfigurationError(f"none of the users {', '.join(names)} exists on this machine")


def _by_name(name: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
