"""What users of a site with the agent see: their jobs find their software, bad jobs are held with a reason."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from condor_site import Site, wanting

from jobagent.testing import joblog

pytestmark = pytest.mark.condor


BAD_JOBS = {
    # name: (Packages, sub-code of the hold, what the reason must name)
    "unknown": ('{ "VO_ALICE@Tol::1" }', 211, "Tol::1"),
    "no such version": ('{ "VO_ALICE@Tool::99" }', 211, "Tool::99"),
    "no such VO": ('{ "VO_NOBODY@Tool::1" }', 211, "VO_NOBODY@Tool::1"),
    "conflict": ('{ "VO_ALICE@Tool::1", "VO_ALICE@Conflicting::1" }', 212, "Base"),
    "banned": ('{ "VO_ALICE@Banned::1" }', 216, "leaks"),
    "shell": ('{ "$(touch /tmp/x);`id`" }', 214, "not of the form"),
    "traversal": ('{ "../../etc/passwd::1" }', 214, "not of the form"),
    "quote": ('{ "a\\"b" }', 214, "not of the form"),
    "number": ("{ 1 }", 211, "VO_ALICE@1"),
}


@pytest.fixture(scope="module", autouse=True)
def bad_jobs(site: Site) -> dict[str, int]:
    """Submitted before all others: HTCondor 25 takes ten seconds to hold a job whose hook failed."""
    return {name: site.submit(packages=packages, shell="true") for name, (packages, _, _) in BAD_JOBS.items()}


def test_payloads_of_every_kind_find_their_software_and_keep_their_own_environment(site: Site) -> None:
    tool = wanting(site.packages.tool)
    own = "environment = \"MINE='a ''quoted'' word' PATH=/usr/bin:/bin LD_X=1\""
    script = b'#!/bin/sh\nhello && echo "$MINE $LD_X"\n'
    program = b"#!/usr/bin/env python3\nimport greeting\nprint(greeting.WORD)\n"
    by_script = site.submit("executable = run.sh", own, packages=tool, **{"run.sh": script})
    by_python = site.submit("executable = run.py", packages=tool, **{"run.py": program})
    by_long = site.submit(
        f'environment = "LONG={"x" * 20_000}"', packages=tool, shell="hello; test ${#LONG} = 20000 && echo whole"
    )
    by_binary = site.submit("executable = /usr/bin/env", packages=f'"{site.packages.base}, {site.packages.tool}"')
    for cluster in (by_script, by_python, by_long, by_binary):
        assert site.pool.jobs.wait(cluster)[0].fields["ReturnValue"] == 0
    assert site.output(by_script) == "hello from tool 1, 1000 bytes of base\na 'quoted' word 1\n"
    assert site.output(by_python) == "hello\n"
    assert site.output(by_long).endswith("base\nwhole\n")
    variables = dict(line.split("=", 1) for line in site.output(by_binary).splitlines() if "=" in line)
    assert variables["ALIEN_PACKAGES"] == f"{site.packages.base} {site.packages.tool}"
    assert variables["ALIEN_PROC_ID"] == f"{by_binary}.0"
    assert not [name for name in variables if name.startswith("JOBAGENT") or "INHERIT" in name]


def test_a_job_without_packages_is_left_alone(site: Site) -> None:
    cluster = site.submit('environment = "A=1"', shell="env")
    site.pool.jobs.wait(cluster)
    assert "ALIEN_PACKAGES" not in site.output(cluster)
    assert not [name for name in site.pool.history(cluster)[0] if name.startswith("JobAgent")]


def test_what_was_done_is_in_the_history_of_the_job(site: Site) -> None:
    fresh = site.publish("Fresh", {"noise": bytes(range(256)) * 400}, "--depends", site.packages.base)
    there = 'requirements = TARGET.EPName == "ep1"'
    first = site.submit(there, "MY.WantRemoteUpdates = true", packages=wanting(fresh), shell="true")
    site.pool.jobs.wait(first)
    second = site.submit(there, packages=wanting(fresh), shell="true")
    site.pool.jobs.wait(second)
    cold, warm = site.pool.history(first)[0], site.pool.history(second)[0]
    log = (site.pool.sandbox(first) / "job.log").read_text()
    assert f"jobagent: {site.packages.base}, {fresh} ready after" in log
    assert cold["JobAgentPackages"] == [site.packages.base, fresh]
    assert [len(digest) for digest in cold["JobAgentDigests"]] == [64, 64]
    assert cold["JobAgentSeederBytes"] + cold["JobAgentNeighbourBytes"] + cold["JobAgentWebBytes"] > 0
    assert warm["JobAgentCacheHits"] == 2
    assert warm["JobAgentSeederBytes"] == warm["JobAgentNeighbourBytes"] == warm["JobAgentWebBytes"] == 0
    assert 0 <= warm["JobAgentPrepareSeconds"] < 5


def test_a_job_ad_of_ten_megabytes_is_no_reason_to_fail(site: Site) -> None:
    filler = [f'MY.Filler{number} = "{"x" * 1_000_000}"' for number in range(10)]
    cluster = site.submit(*filler, packages=wanting(site.packages.base), shell="true")
    assert site.pool.jobs.wait(cluster)[0].kind == joblog.TERMINATED


def test_jobs_go_where_their_packages_are(site: Site) -> None:
    solo = site.publish("Solo", {"x": "solo"})
    first = site.submit('requirements = TARGET.EPName == "ep2"', packages=wanting(solo), shell="true")
    (event,) = site.pool.jobs.wait(first)
    assert event.kind == joblog.TERMINATED, event.reason
    site.pool.wait_until(lambda: any(solo in ad.get("JobAgentCachedPackages", []) for ad in site.pool.machines()))
    preferring = site.submit(packages=wanting(solo), shell="true")  # one: each machine is matched once a cycle
    requiring = site.submit("MY.PackagesPreInstalled = true", packages=wanting(solo), shell="true", queue=4)
    nowhere = site.submit("MY.PackagesPreInstalled = 1", packages=wanting("VO_ALICE@Solo::2"), shell="true")
    for cluster in (preferring, requiring):
        site.pool.jobs.wait(cluster)
        hosts = {ad["LastRemoteHost"].split("@")[1] for ad in site.pool.history(cluster, "LastRemoteHost")}
        assert hosts == {"ep2"}
    assert site.pool.queue(nowhere)[0]["JobStatus"] == 1
    site.pool.central.tool("condor_rm", str(nowhere))


@pytest.fixture
def web(tmp_path: Path) -> object:
    """A plain web server, as a user may have one."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_any_job_gets_data_by_torrent_and_a_reason_where_it_cannot(site: Site, web: str, tmp_path: Path) -> None:
    torrent = next(site.world.catalogue.glob("torrents/*.torrent"))
    (tmp_path / "x.torrent").write_bytes(torrent.read_bytes())
    (tmp_path / "bad.torrent").write_bytes(b"no torrent")
    by_name = site.submit(
        f"transfer_input_files = torrent:///{site.packages.data}", shell="wc -c < VO_ALICE@Conditions::2026"
    )
    by_url = site.submit(f"transfer_input_files = torrent://{web}/x.torrent", shell="test -s x.torrent")
    late = site.submit(f"transfer_input_files = torrent://{web}/late.torrent", shell="test -s late.torrent")
    bad = {
        site.submit(f"transfer_input_files = torrent://{web}/bad.torrent", shell="true"): "torrent",
        site.submit(f"transfer_input_files = torrent://{web}/gone.torrent", shell="true"): "404",
        site.submit("transfer_input_files = torrent:///VO_ALICE@Nothing::1", shell="true"): "Nothing",
        site.submit(f"transfer_input_files = torrent:///{site.packages.tool}", shell="true"): "not one file",
    }
    assert site.pool.jobs.wait(by_name)[0].kind == joblog.TERMINATED
    assert int(site.output(by_name)) == site.packages.data_bytes
    (event,) = site.pool.jobs.wait(by_url)
    assert event.fields.get("ReturnValue") == 0, event.reason
    statistics = site.pool.history(by_name, "TransferInputStats")[0]["TransferInputStats"]
    assert statistics["TORRENTSizeBytesTotal"] == site.packages.data_bytes
    for cluster, text in bad.items():
        (event,) = site.pool.jobs.wait(cluster)
        assert (event.kind, event.fields.get("HoldReasonCode")) == (joblog.HELD, 13)
        assert event.fields["HoldReasonSubCode"] // 256 >= 200, "the sub-code is the error's exit code"
        assert text in event.reason, event.reason
    site.pool.central.tool("condor_rm", *map(str, bad))
    (event,) = site.pool.jobs.wait(late, {joblog.HELD})
    assert 220 <= event.fields["HoldReasonSubCode"] // 256 < 240, event.reason
    (tmp_path / "late.torrent").write_bytes(torrent.read_bytes())
    (event,) = site.pool.jobs.wait(late, {joblog.TERMINATED})
    assert event.fields.get("ReturnValue") == 0, "the job was not tried again"


def test_bad_jobs_are_held_with_a_code_and_a_reason_that_names_cause_and_remedy(
    site: Site, bad_jobs: dict[str, int]
) -> None:
    for name, (_, code, text) in BAD_JOBS.items():
        (event,) = site.pool.jobs.wait(bad_jobs[name])
        assert event.kind == joblog.HELD, name
        assert (event.fields["HoldReasonCode"], event.fields["HoldReasonSubCode"]) == (19, code), event.reason
        assert text in event.reason
        assert "; " in event.reason, "no remedy"
        assert "\n" not in event.reason
        assert "line " not in event.reason, "the user has not seen what the agent reads"
