"""The generated pages say what the code says."""

import importlib.util
from pathlib import Path

import pytest

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
