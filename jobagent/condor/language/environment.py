"""A job's environment in HTCondor's own notation: the `Environment` attribute (V2) and the old `Env` (V1).

V2: words separated by blanks, `NAME=value`; single quotes protect blanks, a doubled quote inside them is one quote.
V1: `NAME=value` separated by `;`, no quoting.
"""

from __future__ import annotations

from jobagent.condor.language import longform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_BLANKS = " \t\n\r\v\f"  # what separates words: no blank beyond ASCII does


def of_job(ad: longform.Ad) -> dict[str, str]:
    """Return the variables that a job ad sets; empty where it sets none.

    Raises:
        ValueError: The attribute is no string, or a quote in it is not closed.
    """
    v2 = longform.string_attribute(ad, "Environment")
    if v2 is not None:
        return parse(v2)
    v1 = longform.string_attribute(ad, "Env")
    return parse_v1(v1, longform.string_attribute(ad, "EnvDelim") or ";") if v1 else {}


def parse(text: str) -> dict[str, str]:
    """Return the variables of a V2 string; a word without `=` is left out, as the starter does.

    Raises:
        ValueError: A quote is not closed.
    """
    variables = {}
    for word in _words(text):
        name, equals, value = word.partition("=")
        if name and equals:
            variables[name] = value
    return variables


def parse_v1(text: str, delimiter: str = ";") -> dict[str, str]:
    """Return the variables of a V1 string."""
    pairs = (item.partition("=") for item in text.split(delimiter))
    return {name.strip(): value for name, equals, value in pairs if name.strip() and equals}


def render(variables: Mapping[str, str]) -> str:
    """Return the V2 string of the variables."""
    return " ".join(_quoted(f"{name}={value}") for name, value in variables.items())


def _quoted(word: str) -> str:
    if "'" not in word and word.split() == [word]:  # blanks beyond ASCII are protected too: it does no harm
        return word
    return "'" + word.replace("'", "''") + "'"


def _words(text: str) -> list[str]:
    """Split at blanks outside quotes: the text's pieces between quotes are outside and inside by turns."""
    pieces = text.split("'")
    if len(pieces) % 2 == 0:
        raise ValueError(f"a quote is not closed in the environment {text[:100]!r}")
    words = [""]
    for number, piece in enumerate(pieces):
        if number % 2:
            parts = [piece]
        elif not piece and 0 < number < len(pieces) - 1:
            parts = ["'"]  # a doubled quote: an empty piece between two quoted ones
        else:
            parts = _at_blanks(piece)
        words[-1] += parts[0]
        words += parts[1:]
    return [word for word in words if word]


def _at_blanks(text: str) -> list[str]:
    """Split at each blank: empty parts tell where the text begins or ends with one."""
    for blank in _BLANKS[1:]:
        text = text.replace(blank, " ")
    return text.split(" ")
