"""What keeps a payload from changing the packages of the next job."""

from __future__ import annotations

import functools
import shutil
import subprocess

from jobagent_sharedcache.settings import Protection

_PROBE_TIMEOUT_S = 5.0


def decide(setting: Protection, *, holder_uid: int, owner_uid: int, has_view: bool) -> Protection:
    """Return the protection that counts for a job of `holder_uid`; never `auto`."""
    if setting is not Protection.AUTO:
        return setting
    if holder_uid not in (owner_uid, 0):
        return Protection.UID
    return Protection.VIEW if has_view else Protection.MANIFEST


@functools.cache
def has_view() -> bool:
    """Whether bubblewrap can make a read-only view here: not where user namespaces are forbidden."""
    program = shutil.which("bwrap")
    if program is None:
        return False
    try:
        probe = [program, "--ro-bind", "/", "/", "--unshare-pid", "--cap-drop", "ALL", "true"]
        return subprocess.run(probe, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
