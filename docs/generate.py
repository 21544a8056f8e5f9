"""Make the generated pages of `docs/` from the code; `tests/test_docs.py` checks that they are up to date."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
from pathlib import Path

from jobagent import errors, hookspecs
from jobagent.cli import config as config_command
from jobagent.cli.main import COMMANDS
from jobagent.condor.pilots.elements import Element
from jobagent.config import Config
from jobagent.pluginmanager import load

HERE = Path(__file__).resolve().parent
MADE_BY = "Made by `make docs` from the code; edit there."


def configuration() -> str:
    """Every section and key of the configuration file, and of that of compute elements."""
    config = Config()
    load(config)
    elements = [
        "# Compute elements",
        "",
        "For `jobagent pilots`: `/etc/jobagent/elements.toml`, or `--elements`.",
        "",
    ]
    return "\n".join([config_command.document(config), *elements, *config_command.table(Element)])


def exit_codes() -> str:
    """Every error class with its exit code and what HTCondor does on it."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.JobAgentError)]
    lines = ["# Exit codes and hold codes", "", MADE_BY, ""]
    lines += [
        "`jobagent run` ends with the payload's own exit code (128 plus the number of the signal that ended it), or "
        "with one of these.  Under HTCondor a code below 300 holds the job with that sub-code; where the table says "
        "*idle*, the job goes back to Idle and runs elsewhere.",
        "",
        "| exit code | error | HTCondor | meaning |",
        "|---|---|---|---|",
    ]
    for cls in sorted(classes, key=lambda c: (c.exit_code, c.__name__)):
        if cls in {errors.JobAgentError, errors.Interrupted}:
            continue
        action = f"idle ({cls.exit_code + 100})" if cls.retryable else f"hold ({cls.exit_code})"
        meaning = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| {cls.exit_code} | {cls.__name__} | {action} | {meaning} |")
    lines += ["| 70 | – | idle | A bug of the agent: run with `-vv` and report it. |", ""]
    return "\n".join(lines)


def hooks() -> str:
    """Every hook with its documentation."""
    lines = ["# Hooks", "", MADE_BY, "", inspect.getdoc(hookspecs) or "", ""]
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction):
        if not name.startswith("jobagent_"):
            continue
        text = inspect.getdoc(function) or ""
        body, _, example = text.partition("Example:\n")
        lines += [f"## {name}{inspect.signature(function)}", "", body.strip(), ""]
        lines += ["```python", inspect.cleandoc(example), "```", ""]
    return "\n".join(lines).replace("jobagent.contracts.", "").replace("jobagent.model.", "")


def commands() -> str:
    """The help of every command."""
    os.environ["COLUMNS"] = "100"  # for those that choose a formatter of their own
    lines = ["# Commands", "", MADE_BY, ""]
    for command, (module, summary) in sorted(COMMANDS.items()):
        parser = argparse.ArgumentParser(
            prog=f"jobagent {command}",
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
        )
        importlib.import_module(f"jobagent.cli.{module}").arguments(parser)
        lines += [f"## jobagent {command}", "", "```", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


PAGES = {
    "configuration.md": configuration,
    "exit-codes.md": exit_codes,
    "hooks.md": hooks,
    "commands.md": commands,
}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
