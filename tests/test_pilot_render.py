"""The pilot script holds what it may run, and nothing from outside can become shell."""

import dataclasses
import re
import shutil
import subprocess

import pytest

from jobagent.central.landing.pilotscript import Landing, Runtime, render, template
from jobagent.errors import ConfigurationError

RUNTIME = Runtime("a" * 64, 9_000_000, "x86_64", 120, "b" * 64, 30_000_000)
LANDING = Landing(RUNTIME, ["http://one.test/r"], "[site]\nname = 'x'\n", b'{"signed": {}}')


def test_every_placeholder_of_the_template_is_filled() -> None:
    assert not re.search(r"@[A-Z0-9_]+@", render(LANDING))


@pytest.mark.parametrize("shell", [["dash", "-n"], ["busybox", "sh", "-n"], ["bash", "--posix", "-n"]])
def test_the_rendered_script_is_valid_in(shell: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    argv = [*shell, "/dev/stdin"]
    done = subprocess.run(argv, input=render(LANDING), text=True, capture_output=True, timeout=10, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    # unreachable (traps), A && B || C, and single quotes are meant
    argv = ["shellcheck", "--shell=sh", "--exclude=SC2317,SC2015,SC2016", "-"]
    done = subprocess.run(argv, input=render(LANDING), text=True, capture_output=True, timeout=60, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize(
    "url",
    [
        "http://x/'; rm -rf /; '",
        "ftp://x/y",
        "http:///y",
        "http://x/a b",
        "http://x/`id`",
        'http://x/"',
        "http://x/\\",
    ],
)
def test_a_url_that_could_become_shell_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        render(dataclasses.replace(LANDING, runtime_urls=[url]))


def test_settings_cannot_end_their_here_document() -> None:
    with pytest.raises(ConfigurationError):
        render(dataclasses.replace(LANDING, settings="a = 1\nEND_OF_SETTINGS\nreboot\n"))


def test_a_placeholder_in_the_settings_stays_as_it_is() -> None:
    assert "x = '@RUNTIME_URLS@'" in render(dataclasses.replace(LANDING, settings="x = '@RUNTIME_URLS@'"))


def test_the_template_itself_refuses_to_run() -> None:
    done = subprocess.run(["sh"], input=template(), text=True, capture_output=True, timeout=10, check=False)
    assert done.returncode == 224
    assert "not made by 'jobagent bundle'" in done.stderr
