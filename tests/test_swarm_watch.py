"""Watching a swarm and drawing what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobagent.central.services.plot import Sample, plot_traffic, read_samples, write_samples
from jobagent.cli import main
from jobagent.errors import CatalogueUnreachable, UsageError
from tests.swarm_field import agents, central

RUN = [Sample(10.0, 0, 0), Sample(11.0, 5_000_000, 9_000_000), Sample(12.0, 6_000_000, 40_000_000)]


def test_picture_of_a_run_is_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_samples(RUN, tmp_path / "run.json")
    assert read_samples(tmp_path / "run.json") == RUN
    assert main.main(["swarm", "plot", str(tmp_path / "run.json")]) == 0
    picture = Path(capsys.readouterr().out.strip())
    assert picture == tmp_path / "run.png" and picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"samples": [{"time_s": "x"}]}', '{"samples": [1]}'])
def test_file_that_is_no_run_is_a_usage_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match="no run"):
        read_samples(tmp_path / "run.json")


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two samples"):
        plot_traffic(RUN[:1], tmp_path / "picture.png")
    with pytest.raises(UsageError, match="No such file"):
        read_samples(tmp_path / "absent")


@pytest.mark.swarm
def test_status_shows_what_the_swarm_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with central(tmp_path) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        agent.swarm.fetch(agent.order(published))
        agent.swarm.close()
        assert main.main(["swarm", "status", services.url]) == 0
        shown = capsys.readouterr().out
        assert "VO_ALICE@A::1" in shown and "4.0 MB" in shown
        assert main.main(["swarm", "status", services.url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["packages"][0]["downloaded"] == 1


def test_status_of_nobody_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["swarm", "status", "http://127.0.0.1:9"]) == CatalogueUnreachable.exit_code
    assert "Connection refused" in capsys.readouterr().err
