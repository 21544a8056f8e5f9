"""`jobagent bundle`: build what pilots bring to worker nodes, and the script that lands there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
from pathlib import Path

from jobagent import config as configuration
from jobagent import durable
from jobagent.central.landing import bundle, pilotscript
from jobagent.central.services import pilotweb
from jobagent.config import JobSettings
from jobagent.errors import ConfigurationError, UsageError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("output", type=Path, metavar="DIR", help="where the runtime, the agent and the script go")
    parser.add_argument("--effort", type=int, default=9, choices=range(10), metavar="0…9", help="of xz; default: 9")
    script = parser.add_argument_group("the pilot script (without --url none is written)")
    script.add_argument(
        "--url", action="append", default=[], metavar="URL", help="base URL of the catalogue; mirrors too"
    )
    script.add_argument("--root", type=Path, metavar="FILE", help="the catalogue's first root metadata")
    script.add_argument("--vo", default="", help="the VO whose pilots they are (default: [job] vo)")
    script.add_argument("--pool", default="", metavar="HOST:PORT", help="collector of the VO's pool")
    script.add_argument("--condor", default="HTCondorWorker", metavar="PACKAGE", help="HTCondor's worker files")
    script.add_argument("--agent", default="", metavar="PACKAGE", help="the agent as a package, if it is one")
    script.add_argument("--settings", type=Path, metavar="FILE", help="more settings of the agent, as TOML")
    script.add_argument("--scratch-mb", type=int, default=1000, metavar="MB", help="disk that a node must have free")
    script.add_argument(
        "--catalogue", type=Path, metavar="DIR", help="put runtime and script where it is served from"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Build, and tell the sizes."""
    config = configuration.load(args.config)
    if args.url and args.root is None:
        raise UsageError(
            "the script needs the catalogue's first root metadata", remedy="give --root metadata/1.root.json"
        )
    built = bundle.build(args.output, effort=args.effort)
    script = _script(args, built, args.vo or config.get(JobSettings).vo) if args.url else ""
    if script:
        path = args.output / pilotscript.TEMPLATE_NAME
        durable.write(path, script.encode(), mode=0o755)
    if args.catalogue:
        place(args.catalogue, built, script)
    record = dataclasses.asdict(built.runtime) | {"bundle_mb": round(built.runtime.size_bytes / 1e6, 2)}
    durable.write(args.output / "bundle.json", json.dumps(record, indent=2).encode() + b"\n")
    if args.json:
        print(json.dumps(record))
        return 0
    print(
        f"runtime   {built.runtime.size_bytes / 1e6:6.2f} MB  {built.runtime.file_count} files,"
        f" sha256 {built.runtime.sha256}"
    )
    if script:
        print(f"script    {len(script) / 1e6:6.2f} MB  {args.output / pilotscript.TEMPLATE_NAME}")
    print(f"agent     as a package: jobagent publish --tree {built.agent} --name JobAgent --version …")
    return 0


def place(catalogue: Path, built: bundle.Built, script: str) -> None:
    """Put the runtime, under its digest, and the script into the catalogue's directory; the script last."""
    directory = catalogue / pilotweb.DIRECTORY
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        target = directory / built.runtime.sha256
        if not target.exists():
            temporary = directory / f".{built.runtime.sha256}.tmp"
            shutil.copyfile(built.archive, temporary)
            os.replace(temporary, target)
        if script:
            durable.write(directory / pilotweb.SCRIPT, script.encode())
    except OSError as error:
        raise ConfigurationError(f"cannot write below {catalogue}: {error.strerror}") from error


def _script(args: argparse.Namespace, built: bundle.Built, vo: str) -> str:
    if not vo:
        raise UsageError("whose pilots are they?", remedy="give --vo, or set [job] vo")
    try:
        root = args.root.read_bytes()
        extra = args.settings.read_text(encoding="utf-8") if args.settings else ""
    except OSError as error:
        raise ConfigurationError(f"cannot read {error.filename}: {error.strerror}") from error
    bases = [url.rstrip("/") for url in args.url]
    runtimes = [f"{base}/{pilotweb.DIRECTORY}/{built.runtime.sha256}" for base in bases]
    membership = pilotscript.Membership(vo, bases, args.pool, args.condor if args.pool else "", args.agent)
    landing = pilotscript.Landing(
        built.runtime,
        [f"{url}{turn}" for turn in pilotweb.TURNS for url in runtimes],
        pilotscript.settings_of(membership, extra),
        root,
        offer_urls=[f"{url}/offer" for url in runtimes],
        scratch_mb=args.scratch_mb,
    )
    return pilotscript.render(landing)
