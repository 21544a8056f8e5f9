"""Compute elements are read strictly, and pilots described as each kind of element wants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobagent.condor.pilots.elements import Element, Order, description, find, load
from jobagent.errors import ConfigurationError, UsageError

EXAMPLES = Path(__file__).parent.parent / "sitecfg" / "ce"


def order(element: Element) -> dict[str, str]:
    return description(Order(element, Path("/v/pilot.sh"), Path("/v/pool.token"), Path("/v/logs")))


def test_the_examples_are_valid() -> None:
    found = load(EXAMPLES / "elements.toml")
    assert {element.kind for element in found} == {"condor", "arc"}
    for element in found:
        assert order(element)["grid_resource"] == element.resource


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[element]]\nname = 'a'\nresource = 'condor a a:9619'\nwalls = 3\n", "unknown key walls"),
        ("[[element]]\nname = 'a b'\nresource = 'condor a a:9619'\n", "element name 'a b'"),
        ("[[element]]\nname = 'a'\nresource = 'condor a'\n", "resource is 'condor a'"),
        ("[[element]]\nname = 'a'\nresource = 'gt5 a'\n", "resource is 'gt5 a'"),
        ("[[element]]\nname = 'a'\nresource = 'arc https://a'\ncpus = 0\n", "cpus must be greater than 0"),
        ("[[element]]\nname = 'a'\nresource = 'arc https://a'\n" * 2, "two elements have one name"),
        ("[element]\nname = 'a'\n", "only [[element]] entries"),
        ("[site]\n", "only [[element]] entries"),
        ("element = nonsense", "Invalid value"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "elements.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert complaint in str(caught.value)


def test_a_resource_can_be_written_out() -> None:
    assert find((), "condor ce ce:9619").resource == "condor ce ce:9619"
    with pytest.raises(UsageError, match="known: a"):
        find((Element("a", "condor a a:9619"),), "b")


def test_condor_elements_are_told_cores_memory_and_minutes() -> None:
    made = order(Element("a", "condor a a:9619", cpus=8, memory_mb=16000, wall_s=7200))
    assert (made["MY.xcount"], made["MY.maxMemory"], made["MY.maxWallTime"]) == ("8", "16000", "120")
    assert made["MY.JobAgentPilot"] == "true" and made["MY.JobAgentPilotElement"] == '"a"'


def test_arc_elements_get_their_own_description() -> None:
    made = order(Element("a", "arc https://a", cpus=8, memory_mb=16000, wall_s=7200, queue="long"))
    assert "<NumberOfSlots>8</NumberOfSlots>" in made["arc_resources"]
    assert "<QueueName>long</QueueName>" in made["arc_resources"]
    assert "MY.xcount" not in made


def test_the_pilot_finds_its_token_and_knows_its_time() -> None:
    made = order(Element("a", "condor a a:9619", wall_s=7200, site='A\'s "site"'))
    assert made["transfer_input_files"] == "/v/pool.token"
    assert "JOBAGENT_TOKEN_FILE='pool.token'" in made["environment"]
    assert "JOBAGENT_WALL_S='7200'" in made["environment"]
    assert "JOBAGENT_SITE='A''s \"\"site\"\"'" in made["environment"]
