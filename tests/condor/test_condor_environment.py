"""Reading and writing what HTCondor keeps in a job ad, without its bindings, compared with its bindings."""

from __future__ import annotations

import contextlib

import classad2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent.condor.language import environment, longform

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
texts = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\n\r"), max_size=60)


def read_by_htcondor(ad: str) -> classad2.ClassAd:
    (read,) = classad2.parseAds(ad, classad2.ParserType.Old)
    return read


@given(st.dictionaries(names, texts, max_size=6))
def test_every_environment_survives_a_round_trip(variables: dict[str, str]) -> None:
    assert environment.parse(environment.render(variables)) == variables


@given(st.dictionaries(names, texts, max_size=6))
def test_what_is_written_into_an_ad_is_read_back_by_htcondor_and_by_us(variables: dict[str, str]) -> None:
    line = longform.assignment("Environment", environment.render(variables))
    assert read_by_htcondor(line)["Environment"] == environment.render(variables)
    assert environment.of_job(longform.read(f"Cmd = 1\n{line}\nZ = 2\n".encode())) == variables


@given(texts)
def test_a_string_that_htcondor_wrote_is_understood(text: str) -> None:
    ad = classad2.ClassAd()
    ad["Environment"] = text
    assert longform.string_attribute(longform.read(ad.printOld().encode()), "environment") == text


@given(st.binary(max_size=300))
def test_no_ad_is_too_strange_to_be_looked_at(ad: bytes) -> None:
    with contextlib.suppress(ValueError):
        environment.of_job(longform.read(ad))
    longform.expression(longform.read(ad), "Packages")


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("A=1 B=2", {"A": "1", "B": "2"}),
        ("A='x y' B='it''s'", {"A": "x y", "B": "it's"}),
        ("'A=x y'  B=a'  'b", {"A": "x y", "B": "a  b"}),
        ("A= B=''", {"A": "", "B": ""}),
        ("A=b=c novalue", {"A": "b=c"}),
        ("A=$(HOME);`id`", {"A": "$(HOME);`id`"}),
        ("'A='\t'' B=x'a''b'y", {"A": "", "B": "xa'by"}),
        ("A=a\u00a0b", {"A": "a\u00a0b"}),
        ("", {}),
    ],
)
def test_v2_strings_are_read_as_the_starter_reads_them(text: str, variables: dict[str, str]) -> None:
    assert environment.parse(text) == variables


def test_a_quote_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ValueError, match="not closed"):
        environment.parse("A='x y")


def test_an_old_style_environment_is_kept() -> None:
    assert environment.of_job(longform.read(b'Env = "A=1;B=x y"\n')) == {"A": "1", "B": "x y"}


def test_the_new_style_wins_over_the_old() -> None:
    assert environment.of_job(longform.read(b'Env = "A=1"\nEnvironment = "A=2"\n')) == {"A": "2"}


def test_an_environment_that_is_no_string_is_refused() -> None:
    with pytest.raises(ValueError, match="Environment is not a string"):
        environment.of_job(longform.read(b"Environment = strcat(A, B)\n"))


def test_values_become_expressions_that_htcondor_evaluates_to_the_same() -> None:
    values: dict[str, longform.Value] = {"S": 'a"b\\c$(X)', "I": 7, "F": 0.25, "B": True, "L": ("x", "y::z"), "E": ()}
    ad = read_by_htcondor("\n".join(longform.assignment(n, v) for n, v in values.items()))
    assert {n: tuple(ad.eval(n)) if isinstance(v, tuple) else ad.eval(n) for n, v in values.items()} == values


@pytest.mark.parametrize("value", ["a\nJobStatus = 3", "a\0b", ("a\\", "b"), ('a", "b',)])
@pytest.mark.acceptance(35)
def test_a_value_that_would_break_out_of_its_line_is_refused(value: longform.Value) -> None:
    with pytest.raises(ValueError, match="cannot be said"):
        longform.literal(value)
