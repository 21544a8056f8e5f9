"""The order in which a job's hooks are called, as plugin authors may rely on it."""

import os

import pytest

from jobagent import config as configuration
from jobagent.cli.run import base_environment
from jobagent.events import Events
from jobagent.hookspecs import hookimpl
from jobagent.job import kit as kits
from jobagent.job import scratch
from jobagent.job.keeper import Keeper
from jobagent.job.payload import Interruption
from jobagent.job.session import Place, run
from jobagent.model import Job, PackageSpec
from jobagent.pluginmanager import load
from jobagent.testing.world import World

pytestmark = pytest.mark.swarm

GOLDEN = [
    "cache",
    "parsers",
    "catalogues",
    "transports",
    "verifiers",
    "unpackers",
    "environments",
    "inputs",
    "transport_order Tool",
    "cache_acquired Tool",
    "before_payload true",
    "after_payload 0",
    "cache_released Tool",
    "cleanup true",
]


class Spy:
    """Writes down every hook that it is called with, and says nothing."""

    def __init__(self):
        self.calls = []

    @hookimpl
    def jobagent_cache(self, context):
        self.calls.append("cache")

    @hookimpl
    def jobagent_parsers(self, context):
        self.calls.append("parsers")

    @hookimpl
    def jobagent_catalogues(self, context):
        self.calls.append("catalogues")

    @hookimpl
    def jobagent_transports(self, context):
        self.calls.append("transports")

    @hookimpl
    def jobagent_verifiers(self, context):
        self.calls.append("verifiers")

    @hookimpl
    def jobagent_unpackers(self, context):
        self.calls.append("unpackers")

    @hookimpl
    def jobagent_environments(self, context):
        self.calls.append("environments")

    @hookimpl
    def jobagent_inputs(self, context):
        self.calls.append("inputs")

    @hookimpl
    def jobagent_transport_order(self, package):
        self.calls.append(f"transport_order {package.id.name}")

    @hookimpl
    def jobagent_cache_acquired(self, installed):
        self.calls.append(f"cache_acquired {installed.package.id.name}")

    @hookimpl
    def jobagent_before_payload(self, job, installed, environment):
        assert [str(i.package.id) for i in installed] == ["VO_ALICE@Tool::1"]
        assert environment.variables["TOOL_ROOT"] == str(installed[0].tree)
        self.calls.append(f"before_payload {job.executable}")

    @hookimpl
    def jobagent_after_payload(self, job, outcome):
        self.calls.append(f"after_payload {outcome.exit_code}")

    @hookimpl
    def jobagent_cache_released(self, package):
        self.calls.append(f"cache_released {package.id.name}")

    @hookimpl
    def jobagent_cleanup(self, job):
        self.calls.append(f"cleanup {job.executable}")


def test_hooks_of_a_job_come_in_this_order(tmp_path):
    world = World(tmp_path)
    world.publish("Tool", {"bin/tool": "#!/bin/sh\n"})
    with world.serving():
        node = world.node()
        config = configuration.load(node.configuration)
        plugins, spy = load(config), Spy()
        plugins.register(spy, "spy")
        directory = scratch.JobDirectory(node.scratch)
        keeper = Keeper(scratch=directory.path)
        kit = kits.assemble(config, state=directory.path, events=Events(), plugins=plugins)
        try:
            (directory.path / "work").mkdir()
            job = Job("test", executable="true", packages=(PackageSpec("Tool"),), namespace="alice")
            place = Place(directory.path / "work", tmp_path / "out", f"order-{os.getpid()}")
            run(job, kit, keeper, place, base_environment(), Interruption())
        finally:
            kit.close()
            keeper.close()
            directory.remove()
    assert spy.calls == GOLDEN
