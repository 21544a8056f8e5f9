"""The job descriptions that the agent reads, as a plugin: AliEn JDL, HTCondor submit files, ClassAds.

A dialect is told by content, by the first of these rules that applies (comment lines do not count):

1. The text starts with `[`: a ClassAd where it sets `Cmd` or `MyType`, else a JDL in brackets.
2. A line is a `queue` statement: a submit file.
3. A line ends with `;`: a JDL.
4. `Cmd = "…"` or `MyType = "…"` at the start of a line: a ClassAd, one attribute a line.
5. `executable = …`: a JDL where the value is a quoted string, else a submit file.
6. A line starts with `+Name =` or `MY.Name =`: a submit file.
7. Every line is `Name = value`: a ClassAd.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from jobagent.plugin import Context, InputSource, Job, Parser, hookimpl

JDL, SUBMIT, CLASSAD = "jdl", "submit", "classad"

_COMMENT = re.compile(r"^[ \t]*(?:#|//).*$", re.MULTILINE)
_AD_KEY = re.compile(r"(?:^|[;\[])\s*(?:Cmd|MyType)\s*=", re.IGNORECASE)
_QUEUE = re.compile(r"^[ \t]*queue(?:[ \t][^=\n]*)?$", re.IGNORECASE | re.MULTILINE)
_SEMICOLON = re.compile(r";[ \t]*$", re.MULTILINE)
_AD_LINE = re.compile(r'^(?:Cmd|MyType) *= *"', re.IGNORECASE | re.MULTILINE)
_EXECUTABLE = re.compile(r"^[ \t]*executable[ \t]*=[ \t\n]*(.)", re.IGNORECASE | re.MULTILINE)
_CUSTOM = re.compile(r"^[ \t]*(?:\+|MY\.)[A-Za-z_]\w*[ \t]*=", re.IGNORECASE | re.MULTILINE)
_LINES = re.compile(r"\s*(?:[A-Za-z_][\w.]*[ \t]*=[^=\n][^\n]*(?:\n\s*|$))+")


def detect(text: str) -> str:
    """Return the dialect of `text`, empty where no rule applies; never raises."""
    text = _COMMENT.sub("", text.removeprefix("\ufeff")).replace("\r\n", "\n").strip()
    if text.startswith("["):
        return CLASSAD if _AD_KEY.search(text) else JDL
    if _QUEUE.search(text):
        return SUBMIT
    if _SEMICOLON.search(text):
        return JDL
    if _AD_LINE.search(text):
        return CLASSAD
    if executable := _EXECUTABLE.search(text):
        return JDL if executable[1] == '"' else SUBMIT
    if _CUSTOM.search(text):
        return SUBMIT
    return CLASSAD if _LINES.fullmatch(text) else ""


class JdlParser:
    """AliEn's job description language."""

    dialect = JDL

    def recognises(self, text: str) -> bool:
        """Whether the rules of this module call it a JDL."""
        return detect(text) == JDL

    def parse(self, text: str, *, arguments: Sequence[str], base_directory: Path) -> Job:
        """Return the job, with `arguments` for `$1 … $n` and the user's home for `$HOME`."""
        from jobagent.condor.language import jdl

        home = os.environ.get("HOME", "")
        return jdl.parse(text, arguments=arguments, home=home, base_directory=base_directory)


class SubmitParser:
    """HTCondor's submit language."""

    dialect = SUBMIT

    def recognises(self, text: str) -> bool:
        """Whether the rules of this module call it a submit file."""
        return detect(text) == SUBMIT

    def parse(self, text: str, *, arguments: Sequence[str], base_directory: Path) -> Job:
        """Return the first job of the queue statement; `arguments` are `name=value` macros, as for condor_submit."""
        from jobagent.condor.language import submit

        return submit.parse(text, arguments=arguments, base_directory=base_directory)


class ClassAdParser:
    """Job ads, one attribute a line or in brackets."""

    dialect = CLASSAD

    def recognises(self, text: str) -> bool:
        """Whether the rules of this module call it a ClassAd."""
        return detect(text) == CLASSAD

    def parse(self, text: str, *, arguments: Sequence[str], base_directory: Path) -> Job:
        """Return the job; an ad takes no arguments."""
        from jobagent.condor.language import ads

        return ads.parse(text, arguments=arguments, base_directory=base_directory)


def parsers() -> list[Parser]:
    """Return the three dialects, for commands that need no other plugin."""
    return [JdlParser(), SubmitParser(), ClassAdParser()]


@hookimpl
def jobagent_parsers(context: Context) -> Sequence[Parser]:
    """Provide the three dialects."""
    return parsers()


@hookimpl
def jobagent_inputs(context: Context) -> Sequence[InputSource]:
    """Provide files that JDLs name by AliEn's catalogue."""
    from jobagent.condor.language.alien_names import FilesBesideTheJob

    return [FilesBesideTheJob()]
