"""`jobagent config`: show the configuration in force, and check a file without using it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from jobagent import config as configuration
from jobagent.pluginmanager import load


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("action", nargs="?", choices=("show", "check", "doc"), default="show", help="default: show")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the configuration, that it is right, or its documentation."""
    config = configuration.load(args.config)
    load(config)
    if args.action == "check":
        print(f"{config.source}: right")
    elif args.action == "doc":
        print(document(config), end="")
    elif args.json:
        print(json.dumps(_values(config), indent=2))
    else:
        for section, values in _values(config).items():
            print(f"[{section}]")
            for key, value in values.items():
                print(f"{key} = {json.dumps(value)}")
            print()
    return 0


def document(config: configuration.Config) -> str:
    """Return `docs/configuration.md`, made from the settings' own declarations."""
    lines = ["# Configuration", "", "Made by `make docs` from the declarations in the code.", ""]
    lines += [
        "One TOML file: `--config`, else `$JOBAGENT_CONFIG`, else `~/.config/jobagent/jobagent.toml`, else "
        "`/etc/jobagent/jobagent.toml`.  An unknown key is an error.",
        "",
    ]
    for section, cls in sorted(config.sections.items()):
        lines += [f"## [{section}]", "", *table(cls)]
    return "\n".join(lines)


def table(cls: type) -> list[str]:
    """Return what a class of settings is for and its keys, as lines of Markdown."""
    lines = [(cls.__doc__ or "").split("\n")[0], "", "| key | default | meaning |", "|---|---|---|"]
    for item in dataclasses.fields(cls):
        default = json.dumps(_plain(item.default))
        lines.append(f"| `{item.name}` | `{default}` | {item.metadata.get('doc', '')} |")
    return [*lines, ""]


def _values(config: configuration.Config) -> dict[str, dict[str, Any]]:
    return {
        section: {f.name: _plain(getattr(config.get(cls), f.name)) for f in dataclasses.fields(cls)}
        for section, cls in sorted(config.sections.items())
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return "" if value == Path() else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value
