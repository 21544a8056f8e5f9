"""The generated pages say what the code says."""

import argparse
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from jobagent.cli.main import COMMANDS, build_parser

DOCS = Path(__file__).resolve().parent.parent / "docs"


def generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["configuration.md", "exit-codes.md", "hooks.md", "commands.md"])
def test_a_generated_page_is_up_to_date(page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert (DOCS / page).read_text(encoding="utf-8") == generator().PAGES[page](), "run make docs"


def shown_commands():
    """The `jobagent` commands in the shell blocks of all pages, those that are cut short with … left out."""
    for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))):
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["jobagent"] and "…" not in line:
                    yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words[:4])}")


@pytest.mark.parametrize("words", list(shown_commands()))
def test_a_command_that_a_page_shows_exists_with_these_options(words):
    args = build_parser().parse_args(words)
    module = importlib.import_module(f"jobagent.cli.{COMMANDS[args.command][0]}")
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.arguments(parser)
    try:
        parser.parse_args(args.rest)
    except (SystemExit, argparse.ArgumentError) as error:
        pytest.fail(f"{words}: {error}")
