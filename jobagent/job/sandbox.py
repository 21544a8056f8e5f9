"""The read-only view of packages around a payload that runs as the agent's own user.

bubblewrap (needs user namespaces, or its set-uid form) mounts the cache read-only and gives the payload a process
namespace of its own; without it the trees are checked by their manifests instead, and the log says so.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from jobagent.errors import ConfigurationError

_PROBE_TIMEOUT_S = 5.0
# Without dropping them, a payload of root's keeps the capability to remount the view read-write.
_CONFINED = ("--unshare-pid", "--die-with-parent", "--cap-drop", "ALL")


def find_bubblewrap() -> str:
    """Return the path of a bubblewrap that works here, or an empty string."""
    program = shutil.which("bwrap")
    if program is None:
        return ""
    probe = [program, "--dev-bind", "/", "/", *_CONFINED, "true"]
    try:
        done = subprocess.run(probe, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return program if done.returncode == 0 else ""


def choose(setting: str) -> str:
    """Return the bubblewrap to use under `[job] sandbox`, or an empty string for none.

    Raises:
        ConfigurationError: The setting is unknown, or demands what is not there.
    """
    if setting not in {"auto", "bubblewrap", "none"}:
        raise ConfigurationError(f"[job] sandbox is {setting!r}, expected auto, bubblewrap or none")
    program = "" if setting == "none" else find_bubblewrap()
    if setting == "bubblewrap" and not program:
        raise ConfigurationError(
            "[job] sandbox = bubblewrap, but bwrap is missing or may not make namespaces",
            remedy='install bubblewrap, allow user namespaces, or set sandbox = "auto"',
        )
    return program


def wrap(argv: Sequence[str], *, program: str, read_only: Sequence[Path], directory: Path) -> tuple[str, ...]:
    """Return the argv that runs `argv` with `read_only` mounted read-only; unchanged where `program` is empty."""
    if not program:
        return tuple(argv)
    binds = [part for path in read_only for part in ("--ro-bind-try", str(path), str(path))]  # no packages, no cache
    view = ["--dev-bind", "/", "/", *binds, *_CONFINED, "--chdir", str(directory)]
    return (program, *view, "--", *argv)
