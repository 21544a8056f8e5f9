"""Running packages' own set-up scripts, for what cannot be had by reading them.

Such a script is code of a VO, and the node service may serve several: so it runs in bubblewrap, with the whole file
system read-only, without network and without any process of others in sight.  Where that is not possible it does
not run, unless the site says so.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobagent.plugin import SiteError

MAX_OUTPUT_BYTES = 1 << 20
BARE = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C"}
_PROBE_TIMEOUT_S = 10.0
_OWN = frozenset({"_", "PWD", "OLDPWD", "SHLVL", "HOME", "LC_ALL"})  # of the shell, and of the bare environment


class ScriptFailed(SiteError):
    """A package's set-up script failed, hung, or may not run on this node."""


def environment_after(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    trees: Sequence[Path],
    links: Mapping[Path, Path],
    timeout_s: float,
    may_run_unconfined: bool,
) -> dict[str, str]:
    """Run `argv`, which prints an environment as `env -0` does, and return it.

    `trees` are what the script may read; `links` are made below /tmp of the sandbox: name → what it leads to.

    Raises:
        ScriptFailed: No sandbox, a non-zero exit code, a time-out, or too much output.
    """
    command = _sandbox(trees, links)
    if command is None and (links or not may_run_unconfined):
        raise ScriptFailed(
            f"set-up script {argv[0]} may only run in a sandbox, and this node has none",
            remedy="install bubblewrap, or publish the package with --env",
        )
    output = _run([*(command or ()), *argv], {**BARE, **environment}, timeout_s)
    pairs = (item.partition("=") for item in output.decode(errors="surrogateescape").split("\0") if item)
    return {name: value for name, _, value in pairs if name not in _OWN}


def _sandbox(trees: Sequence[Path], links: Mapping[Path, Path]) -> list[str] | None:
    program = shutil.which("bwrap")
    if program is None or not _works(program):
        return None
    command = [program, "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/", "/"]
    command += ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    for tree in trees:
        command += ["--ro-bind", str(tree), str(tree)]
    for name, target in links.items():
        command += ["--symlink", str(target), str(name)]
    return [*command, "--chdir", str(trees[-1]) if trees else "/", "--"]


@functools.cache
def _works(program: str) -> bool:
    """Whether bubblewrap may make its namespaces here; asked once."""
    argv = [program, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
    try:
        return not subprocess.run(
            argv, check=False, capture_output=True, timeout=_PROBE_TIMEOUT_S, stdin=subprocess.DEVNULL
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> bytes:
    try:
        process = subprocess.Popen(
            argv,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise ScriptFailed(f"set-up script cannot be started: {error}") from error
    expired = threading.Event()

    def end() -> None:
        expired.set()
        _kill(process)

    timer = threading.Timer(timeout_s, end)
    timer.start()
    try:
        with process:
            assert process.stdout is not None
            output = process.stdout.read(MAX_OUTPUT_BYTES + 1)
            if len(output) > MAX_OUTPUT_BYTES:
                raise ScriptFailed(f"set-up script {argv[-1]} wrote more than {MAX_OUTPUT_BYTES} bytes")
            process.wait()
    finally:
        timer.cancel()
        _kill(process)
    if expired.is_set():
        raise ScriptFailed(f"set-up script {argv[-1]} took more than {timeout_s:.0f} s")
    if process.returncode:
        raise ScriptFailed(f"set-up script {argv[-1]} failed with exit code {process.returncode}")
    return output


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
