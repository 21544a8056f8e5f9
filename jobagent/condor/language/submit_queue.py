"""The queue statement of a submit file: how many jobs, and what its macros are for the first of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jobagent.condor.language.submit_text import SubmitText
from jobagent.errors import JobSyntaxError

MAX_LINE = 65536  # characters of one item
_FORM = re.compile(
    r"(?P<count>[^\s,()]+?)??\s*(?P<names>[A-Za-z_]\w*(?:\s*,\s*[A-Za-z_]\w*)*)??\s*"
    r"\b(?P<how>in|from|matching)\b\s*(?P<what>.*)",
    re.IGNORECASE | re.DOTALL,
)
_SLICE = re.compile(r"\[[^\]]*\]\s*")
_SEPARATORS = re.compile(r"\s*,\s*|\s+")


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue statement: `how` is empty (only a count), `in`, `from` or `matching`."""

    count: str
    names: tuple[str, ...] = ("Item",)
    how: str = ""
    what: str = ""
    items: tuple[str, ...] = ()

    @property
    def is_array(self) -> bool:
        """Whether it makes more than one job, as far as one can tell without HTCondor."""
        return bool(self.how) or self.count not in {"", "1"}


def parse_queue(text: SubmitText) -> Queue:
    """Return the statement of a submit file; without one, that of a single job."""
    statement = text.queue or ""
    found = _FORM.fullmatch(statement)
    if found is None:
        return Queue(statement)
    names = tuple(_SEPARATORS.split(found["names"])) if found["names"] else ("Item",)
    return Queue(found["count"] or "", names, found["how"].lower(), found["what"].strip(), text.items)


def first_item(queue: Queue, directory: Path) -> dict[str, str]:
    """Return the macros of the first job; relative files are those of `directory`.

    Raises:
        JobSyntaxError: The items come from a program, or there is none.
    """
    if not queue.how:
        return {}
    item = _first(queue, directory)
    if item is None:
        raise JobSyntaxError(f"queue … {queue.how} {queue.what[:80]} has no items")
    values = _SEPARATORS.split(item, len(queue.names) - 1)
    return dict(zip(queue.names, [*values, *[""] * len(queue.names)], strict=False))


def _first(queue: Queue, directory: Path) -> str | None:
    what = _SLICE.sub("", queue.what, count=1)
    if what.startswith("("):
        inline = what[1:].removesuffix(")").strip()
        candidates = (
            [inline, *queue.items] if queue.how == "from" else _SEPARATORS.split(" ".join([inline, *queue.items]))
        )
    elif queue.how == "in":
        candidates = _SEPARATORS.split(what)
    elif queue.how == "matching":
        patterns = re.sub(r"^(?:files|dirs|any)\s+", "", what, flags=re.IGNORECASE)
        candidates = [
            str(p.relative_to(directory)) for g in _SEPARATORS.split(patterns) for p in sorted(directory.glob(g))
        ]
    elif what.endswith("|"):
        raise JobSyntaxError("queue from a program is not run here", remedy="write its output to a file")
    else:
        candidates = _lines(directory / what)
    return next((c.strip() for c in candidates if c.strip()), None)


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            return [line for line in (stream.readline(MAX_LINE) for _ in range(100)) if not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise JobSyntaxError(f"cannot read the items of queue from {path}: {error}") from error
