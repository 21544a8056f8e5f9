"""The start of an agent is on every job's path: what it may not cost, and what nevertheless must happen."""

import importlib.metadata
import shutil
import subprocess
import sys
import textwrap

import pytest

from jobagent.contracts import Context
from jobagent.entrypoints import entry_points
from jobagent.events import Events
from jobagent.testing.world import World, node_environment
from jobagent_archives import Archives
from jobagent_archives.data import DataUnpacker
from jobagent_archives.unpacking import TarUnpacker
from jobagent_swarm.late import LateSwarm
from tests.swarm_field import Agent, address, agents, central, configuration, publish, wait_until

NOT_NEEDED = ("libtorrent", "tuf", "requests", "urllib3", "ssl", "rich", "zstandard", "importlib.metadata", "email")


@pytest.mark.swarm
def test_a_job_whose_packages_are_cached_loads_no_library_of_the_network(tmp_path):
    world = World(tmp_path)
    package = world.publish("Small", {"bin/small": "#!/bin/sh\n"})
    with world.serving():
        node = world.node(f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{tmp_path / "cache"}"\n')
        job = tmp_path / "job.jdl"
        job.write_text(f'Executable = "small"; Packages = {{"{package}"}};')
        assert node.call("run", job).returncode == 0
        argv = [sys.executable, "-X", "importtime", "-m", "jobagent", "--config", node.configuration, "run", job]
        done = subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=60, env=node_environment(node.scratch)
        )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "jobagent.job.prepare" in loaded
    assert loaded.isdisjoint(NOT_NEEDED)


@pytest.mark.swarm
def test_what_was_there_already_is_offered_a_little_later(tmp_path):
    with central(tmp_path, is_seeding=False) as services, agents(tmp_path, 1, services.url) as (taker,):
        published = services.publish()
        giver = Agent(tmp_path, services.url)
        archive = giver.directory / published.package.archive.file_name
        shutil.copyfile(published.path, archive)
        late = late_swarm(giver.directory, giver.address, f"{services.url}/announce")
        try:
            late.seed(published.package, archive, published.torrent)
            assert taker.swarm.fetch(taker.order(published)).neighbour_bytes == published.package.archive.size_bytes
        finally:
            late.close()


@pytest.mark.swarm
def test_a_short_job_opens_no_session(tmp_path):
    published = publish(tmp_path)
    late = late_swarm(tmp_path / "state", address(), "", offer_after_s=30.0)
    late.seed(published.package, published.path, published.torrent)
    assert late.status()["seeding"] == 1
    late.unseed(published.package.key)
    assert late.status()["seeding"] == 0
    late.close()
    assert late._swarm is None


@pytest.mark.swarm
def test_what_cannot_be_offered_is_a_warning(tmp_path):
    published = publish(tmp_path)
    warnings = []
    late = late_swarm(tmp_path / "state", address(), "", offer_after_s=0.0, warnings=warnings)
    try:
        late.seed(published.package, tmp_path / "gone", published.torrent)
        wait_until(lambda: warnings)
        assert "is not offered to others" in warnings[0]
    finally:
        late.close()


def late_swarm(state, own_address, tracker, *, offer_after_s=0.1, warnings=None):
    events = Events()
    if warnings is not None:
        events.subscribe(lambda e: warnings.append(e.fields["message"]) if e.name == "warning" else None)
    context = Context(configuration(own_address, tracker), state, events, "Linux-x86_64")
    return LateSwarm(context, offer_after_s=offer_after_s)


def test_entry_points_are_those_of_the_standard_library():
    for group in ("jobagent", "console_scripts", "pytest11"):
        ours = {(p.name, p.value, p.distribution) for p in entry_points(group)}
        theirs = {
            (p.name, p.value, p.dist.name.replace("_", "-").lower())
            for p in importlib.metadata.entry_points(group=group)
        }
        assert ours == theirs and ours


def test_the_first_distribution_on_the_path_stands(tmp_path):
    for place, module in (("first", "one"), ("second", "two:thing.part")):
        information = tmp_path / place / "My_Plugin-1.0.dist-info"
        information.mkdir(parents=True)
        text = f"""\
            [console_scripts]
            tool = tool:main
            [jobagent]
            # a comment
            mine = {module} [extra]
            """
        (information / "entry_points.txt").write_text(textwrap.dedent(text))
    path = [str(tmp_path / "none"), str(tmp_path / "first"), str(tmp_path / "second")]
    assert [(p.name, p.value, p.distribution) for p in entry_points("jobagent", path)] == [
        ("mine", "one", "my-plugin")
    ]
    assert [p.value for p in entry_points("jobagent", path[2:])] == ["two:thing.part"]


def test_the_plugin_names_all_formats_that_it_unpacks():
    assert Archives.formats == TarUnpacker.formats | DataUnpacker.formats
