"""Watching a swarm and drawing what it did."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console

from jobagent.central.services.plot import Sample, plot_traffic, read_samples, write_samples
from jobagent.central.services.showing import History
from jobagent.central.services.tracker import Policy
from jobagent.cli import main
from jobagent.cli.swarm import fetch_status, show
from jobagent.errors import CatalogueUnreachable, UsageError
from jobagent.model import PackageId
from tests.swarm_field import agents, central, networks, publish, wait_until

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


def test_history_covers_the_whole_run_in_a_bounded_number_of_samples() -> None:
    history = History(interval_s=2.0, most=100)
    for second in range(100_000):
        history.note(Sample(float(second), second, 2 * second))
    times = [s.time_s for s in history.samples]
    assert len(times) <= 100 and times[0] == 0.0 and times[-1] > 95_000
    assert times == sorted(times)


@pytest.mark.swarm
def test_status_shows_sites_copies_and_traffic_and_draws_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = Policy(busy_interval_s=1, seeding_interval_s=1, idle_interval_s=1)
    with central(tmp_path, policy=quick) as services:
        published = services.publish()
        size = published.package.archive.size_bytes
        services.tracker._sites = networks(CERN=f"{services.address.rsplit('.', 2)[0]}.0.0/16")
        services.services.history = History(interval_s=0.2)
        with agents(tmp_path, 2, services.url) as nodes:
            for agent in nodes:
                agent.swarm.fetch(agent.order(published))
            wait_until(lambda: services.tracker.received_bytes >= 2 * size)
            status = fetch_status(services.url)
            assert status["sites"]["CERN"] == {"complete": 2, "incomplete": 0, "received_bytes": 2 * size}
            (package,) = status["packages"]
            assert size <= package["sent_bytes"] <= 2 * size
            assert main.main(["swarm", "status", services.url]) == 0
            shown = capsys.readouterr().out
            assert "CERN:2" in shown and f"{package['sent_bytes'] / size:.2f}" in shown and "8.0 MB" in shown
            with urllib.request.urlopen(f"{services.url}/metrics") as answer:
                metrics = answer.read().decode()
            assert f'jobagent_site_received_bytes_total{{site="CERN"}} {2 * size}' in metrics
            assert f"jobagent_peers_received_bytes_total {2 * size}" in metrics
            wait_until(lambda: len(services.services.history.samples) >= 2)
        assert main.main(["swarm", "plot", services.url, "-o", str(tmp_path / "now.png")]) == 0
        assert (tmp_path / "now.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.swarm
def test_a_large_catalogue_is_shown_without_holding_up_announces(tmp_path: Path) -> None:
    with central(tmp_path, is_seeding=False) as services:
        (tmp_path / "one").mkdir()
        package = publish(tmp_path / "one", size_bytes=1000).package
        for number in range(3000):
            services.catalogue.add(dataclasses.replace(package, id=PackageId("alice", f"P{number}", "1")))
        wait_until(lambda: len(fetch_status(services.url)["packages"]) == 3000, 30)
        times = [fetch_status(services.url)["time_s"] for _ in range(8)]
        assert len(set(times)) < 8, "the status was made anew for every look"
        wait_until(lambda: fetch_status(services.url)["time_s"] > times[-1])


def test_live_table_shows_rates_since_the_last_look() -> None:
    def look(time_s: float, received: int, sites: dict[str, object]) -> dict[str, object]:
        package = {
            "package": "VO_ALICE@A::1", "platform": "any", "state": "released", "sha256": "a", "size_bytes": 10**6,
            "complete": 1, "incomplete": 1, "downloaded": 0, "transferred_bytes": received, "sent_bytes": 1_100_000,
            "sites": {"CERN": [0, 1]} if sites else {},
        }  # fmt: skip
        server = {"seeder": {"upload_bytes": received // 4}, "http_bytes": 0, "received_bytes": received, "peers": 1}
        catalogue = {"is_verified": True, "version": 1}
        return {"time_s": time_s, "catalogue": catalogue, "packages": [package], "sites": sites, "server": server}

    before = look(100.0, 0, {})
    now = look(110.0, 80_000_000, {"CERN": {"complete": 0, "incomplete": 1, "received_bytes": 80_000_000}})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(show(now, before))
    text = console.export_text()
    assert "now 8.0 MB/s, of which 2.0 MB/s" in text and "1.10" in text
    assert text.count("8.0 MB/s") == 3  # in all, of the package, of the site
    console.print(show(before, None))
    assert "/s" not in console.export_text().rpartition("catalogue")[2]


@pytest.mark.swarm
@pytest.mark.outsider
def test_status_page_in_a_browser(tmp_path: Path) -> None:
    """Its script runs in a real browser and shows what is there; nothing is fetched from elsewhere."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    quick = Policy(busy_interval_s=1, seeding_interval_s=1, idle_interval_s=1)
    with central(tmp_path, policy=quick) as services, agents(tmp_path, 1, services.url) as (agent,):
        published = services.publish()
        agent.swarm.fetch(agent.order(published))
        wait_until(lambda: services.tracker.received_bytes > 0)
        options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
        options += " --disable-background-networking --disable-component-update --virtual-time-budget=3000 --dump-dom"
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run(
            [browser, *options.split(), profile, f"{services.url}/"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    page = done.stdout
    assert 'data-ready="yes"' in page, page[-2000:] + done.stderr[-2000:]
    assert "VO_ALICE@A::1" in page and "4.0 MB" in page and '<p id="catalogue" class="">catalogue version' in page


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
