"""Gathers what the doctor looks at: HTCondor's configuration, the node service, disks, ports, the network."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobagent.condor.execution_point.doctor import Disk, Facts, Web
from jobagent.config import Config, NodeSettings
from jobagent.errors import one_line
from jobagent.node import client
from jobagent.node.service import socket_of

TOOL_TIMEOUT_S = 20.0
WEB_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 8 << 20
LOG_END_BYTES = 8 << 10
_NOBODY = 65534  # of every Linux


def gather(config: Config) -> Facts:
    """Return what can be seen from here; nothing raises, what is missing is a fact too."""
    parameters, version, condor_error = _condor()
    status, service_error = _service(config)
    port_spec = str(_value(config, "swarm", "ports", "0"))
    webs, swarm = _network(config)
    return Facts(
        parameters=parameters,
        version=version,
        bindings=_bindings(),
        condor_error=condor_error,
        is_root=os.geteuid() == 0,
        socket_mode=config.get(NodeSettings).socket_mode,
        status=status,
        service_error=service_error,
        service_log=parameters.get("JOBAGENT_LOG", ""),
        service_log_end=last_line(Path(parameters.get("JOBAGENT_LOG", ""))) if status is None else "",
        disks=tuple(_disks(parameters, status)),
        webs=webs,
        swarm=swarm,
        ports=port_spec,
        port_error=_port_error(config, port_spec) if status is None else "",
        start_error=_start_error(parameters.get("JOBAGENT_LIBEXEC", "")),
    )


def _condor() -> tuple[dict[str, str], str, str]:
    """Return parameters, version, and why there are none."""
    try:
        dump = _output("condor_config_val", "-dump", "-expand")
        version = re.search(r"CondorVersion: ([0-9.]+)", _output("condor_version"))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        return {}, "", f"condor_config_val does not run: {reason}"
    return parameters_of(dump), version[1] if version else "", ""


def parameters_of(dump: str) -> dict[str, str]:
    """Return the parameters of `condor_config_val -dump`, by upper-case name."""
    pairs = (line.split(" = ", 1) for line in dump.splitlines() if " = " in line and not line.startswith("#"))
    return {name.strip().upper(): value.strip() for name, value in pairs}


def _output(*argv: str) -> str:
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(f"no {argv[0]} in PATH")
    done = subprocess.run(
        [program, *argv[1:]], capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=True, errors="replace"
    )
    return done.stdout


def _bindings() -> str:
    try:
        import htcondor2
    except ImportError:
        return ""
    found = re.search(r"CondorVersion: ([0-9.]+)", htcondor2.version())
    return found[1] if found else ""


def _service(config: Config) -> tuple[Mapping[str, Any] | None, str]:
    try:
        return client.ask(str(socket_of(config.get(NodeSettings))), "status", timeout_s=WEB_TIMEOUT_S), ""
    except client.ServiceError as error:
        return None, str(error)


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty; nothing where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - LOG_END_BYTES))
            lines = stream.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((one_line(line, limit=500) for line in reversed(lines) if line.strip()), "")


def _disks(parameters: Mapping[str, str], status: Mapping[str, Any] | None) -> Iterator[Disk]:
    places = {"EXECUTE": parameters.get("EXECUTE", ""), "cache": str(status["root"]) if status else ""}
    for purpose, name in places.items():
        if name and os.path.isdir(name):
            room = os.statvfs(name)
            yield Disk(purpose, Path(name), room.f_bavail * room.f_frsize, room.f_favail)


def _port_error(config: Config, spec: str) -> str:
    """Try to listen as the swarm will; only where no node service has the ports already."""
    first, _, last = spec.partition("-")
    wanted = range(int(first), int(last or first) + 1)
    address = str(_value(config, "site", "address", "")).split(",")[0].strip() or "0.0.0.0"
    for port in wanted:
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return ""
    return f"none of [swarm] ports {spec} on {address} can be listened on: this node will only download"


def _network(config: Config) -> tuple[list[Web], str]:
    urls = [str(url).rstrip("/") for url in _value(config, "catalogue", "urls", ())]
    webs = [_asked("catalogue", f"{url}/metadata/timestamp.json")[0] for url in urls]
    named = [str(t) for t in _value(config, "swarm", "trackers", ())]
    trackers = named or [f"{url}/announce" for url in urls]
    webs += [dataclasses.replace(_asked("tracker", url)[0], is_optional=True) for url in trackers]
    return webs, next(filter(None, map(_swarm_of, urls)), "")


def _swarm_of(url: str) -> str:
    """Return how many packages somebody has in whole, where the catalogue's server tells."""
    _, body = _asked("status", f"{url}/status.json")
    try:
        packages = json.loads(body)["packages"]
        seeded = sum(bool(package["is_seeded"] or package["complete"]) for package in packages)
        return f"{seeded} of {len(packages)} packages have a complete peer"
    except (ValueError, KeyError, TypeError):
        return ""


def _asked(purpose: str, url: str) -> tuple[Web, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=WEB_TIMEOUT_S) as answer:
            body = answer.read(MAX_ANSWER_BYTES)
            date = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (OSError, ValueError, TypeError) as error:
        return Web(purpose, url, reason=str(getattr(error, "reason", "") or error)), b""
    return Web(purpose, url, clock_offset_s=time.time() - date), body


def _start_error(libexec: str) -> str:
    """Start one of our programs as a job would, as nobody where we are root; return what went wrong."""
    program = Path(libexec) / "transfer"
    if not libexec or not program.exists():
        return ""
    as_nobody: dict[str, Any] = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        done = subprocess.run(
            [program, "-classad"],
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            check=False,
            cwd="/",
            **as_nobody,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return one_line(done.stderr or f"exit code {done.returncode}") if done.returncode else ""


def _value(config: Config, section: str, key: str, default: Any) -> Any:
    """A setting of a plugin's section; the default where the plugin is off."""
    cls = config.sections.get(section)
    return getattr(config.get(cls), key, default) if cls else default
