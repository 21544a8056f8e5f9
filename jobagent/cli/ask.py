"""What the commands that talk to the node service share: the connection, its progress, its errors as ours."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobagent import config as configuration
from jobagent import errors
from jobagent.config import Config, NodeSettings
from jobagent.errors import JobAgentError, NodeServiceUnavailable
from jobagent.events import Events
from jobagent.node import client
from jobagent.node.service import NodeService, socket_of

START_TIMEOUT_S = 60.0
IDLE_EXIT_S = 600.0  # of a service that a command started


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add --socket."""
    parser.add_argument("--socket", type=Path, metavar="PATH", help="socket of the node service; default: configured")


def socket_path(args: argparse.Namespace, config: Config) -> Path:
    """Return the socket that is meant."""
    return args.socket or socket_of(config.get(NodeSettings))


def ask(
    path: Path, operation: str, values: Mapping[str, Any], events: Events, *, wait_for_service_s: float = 0.0
) -> dict[str, Any]:
    """Ask the node service, passing its progress to `events`; its refusals are raised as errors of ours."""

    def show(line: dict[str, Any]) -> None:
        name = str(line.pop("event", ""))
        if name != "alive":
            events.emit(name, **line)

    try:
        return client.ask(str(path), operation, values, on_event=show, wait_for_service_s=wait_for_service_s)
    except client.ServiceError as error:
        raise as_our_error(error) from error


def as_our_error(error: client.ServiceError) -> JobAgentError:
    """Return the error that the service raised: of the same class, or of the base with the same numbers."""
    cls = getattr(errors, error.kind, None)
    if isinstance(cls, type) and issubclass(cls, JobAgentError):
        with contextlib.suppress(TypeError):
            return cls(str(error))
    other = JobAgentError(str(error))
    other.exit_code, other.retryable = error.exit_code, error.is_retryable
    return other


def ensure_service(path: Path, config_file: Path | None) -> None:
    """Start a node service in the background where none answers; it ends when idle.

    Raises:
        NodeServiceUnavailable: It does not come up; the message has its last line.
    """
    try:
        client.ask(str(path), "hello", timeout_s=10)
        return
    except client.ServiceError:
        pass
    options = ["--config", str(config_file.absolute())] if config_file else []
    argv = [sys.executable, "-m", "jobagent", *options, "node", "--socket", str(path)]
    argv += ["--idle-exit", f"{IDLE_EXIT_S:g}"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True, cwd="/"
        )
        try:
            client.ask(str(path), "hello", timeout_s=10, wait_for_service_s=START_TIMEOUT_S)
        except client.ServiceError as error:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            process.kill()
            process.wait()
            raise NodeServiceUnavailable(f"cannot start a node service: {lines[-1] if lines else error}") from error


@contextlib.contextmanager
def at_hand(args: argparse.Namespace, events: Events) -> Iterator[Asking]:
    """Yield how to ask: the running service, or the cache itself where none runs."""
    config = configuration.load(args.config)
    path = socket_path(args, config)
    try:
        client.ask(str(path), "hello", timeout_s=10)
    except client.ServiceError:
        with _in_process(config, path, events) as asking:
            yield asking
    else:
        yield Asking(path, None, events)


class Asking:
    """Asks a service over its socket, or one within this process."""

    def __init__(self, path: Path, service: NodeService | None, events: Events) -> None:
        self._path = path
        self._service = service
        self._events = events

    def __call__(self, operation: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Perform an operation; raises JobAgentError."""
        if self._service is None:
            return ask(self._path, operation, values, self._events)
        return self._service.perform(operation, values, self)

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Drop it: in this process the events themselves are watched."""


@contextlib.contextmanager
def _in_process(config: Config, path: Path, events: Events) -> Iterator[Asking]:
    from jobagent.job import kit as kits
    from jobagent.job import scratch

    directory = scratch.JobDirectory(kits.scratch_of(config))
    try:
        service = NodeService(kits.assemble(config, state=directory.path, events=events), path)
        try:
            service.take_over()
            yield Asking(path, service, events)
        finally:
            service.close()
    finally:
        directory.remove()
