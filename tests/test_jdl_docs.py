"""The examples of `docs/jobs.md` are jobs, and its tables say what the code does."""

import re
from pathlib import Path

import pytest

from jobagent import errors
from jobagent.condor.access_point import translate
from jobagent.condor.language import alien, dialects, jdl

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "jobs.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```(jdl|submit|classad)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_dialect_has_an_example():
    assert {dialect for dialect, _ in EXAMPLES} == {"jdl", "submit", "classad"}


@pytest.mark.parametrize(("dialect", "text"), EXAMPLES, ids=[dialect for dialect, _ in EXAMPLES])
def test_an_example_is_recognised_and_read(dialect, text):
    assert dialects.detect(text) == dialect
    parser = next(p for p in dialects.parsers() if p.dialect == dialect)
    arguments = ["1000", "42"] if dialect == "jdl" else []
    assert parser.parse(text, arguments=arguments, base_directory=Path("/")).packages


def test_the_table_of_attributes_names_what_the_example_becomes():
    text = next(text for dialect, text in EXAMPLES if dialect == "jdl")
    job = jdl.parse(text, arguments=["1000", "42"])
    found = translate.submission(job, is_file=lambda path: True)
    commands = (
        *("arguments", "requirements", "rank", "allowed_job_duration", "request_disk", "request_memory"),
        *("transfer_input_files", "transfer_output_files", "MY.Packages", "MY.OrigRequirements"),
    )
    for command in commands:
        assert command in found.commands
        assert command.removeprefix("MY.") in PAGE
    for key in alien.NOT_DONE:
        if key in {"split", "merge", "outputdir", "inputdatacollection"}:
            assert key in PAGE.lower()


def test_the_table_of_codes_is_that_of_the_errors():
    table = PAGE[PAGE.index("| code | what | who acts |") :]
    for cls in (errors.UnknownPackage, errors.VersionConflict, errors.DependencyCycle, errors.JobSyntaxError,
                errors.WrongPlatform, errors.PackageBanned, errors.ValidationFailed, errors.LimitExceeded,
                errors.PayloadNotRunnable):  # fmt: skip
        assert str(cls.exit_code) in table, cls


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ('[ Executable = "a" ]', "jdl"),
        ('[ Cmd = "a" ]', "classad"),
        ('# [\n[\n Arguments = "x";\n MyType = "Job" ]', "classad"),
        ("executable = a\nqueue", "submit"),
        ('Executable = "a";\nqueue', "submit"),
        ('Executable = "a";', "jdl"),
        ('Executable = "a"', "jdl"),
        ("executable = a", "submit"),
        ('Cmd = "a"\nArgs = "x;"', "classad"),
        ('Packages = "A::1"\nFoo = 1\n', "classad"),
        ('+Packages = "A::1"', "submit"),
        ('Packages = {\n"A::1"\n}\n;', "jdl"),
        ("", ""),
        ("hello world", ""),
        ("#!/bin/sh\nexit 0\n", ""),
        ("\x00\x01", ""),
    ],
)
def test_a_dialect_is_told_by_its_content(text, dialect):
    assert dialects.detect(text) == dialect


def test_telling_the_dialect_of_a_large_text_is_quick():
    for text in (
        "a = 1\n" * 500_000,
        "x" * 5_000_000,
        " " * 5_000_000,
        "a=" * 2_000_000,
        "\n" * 5_000_000,
        "a = 1\n" * 300_000 + "b",
    ):
        dialects.detect(text)
