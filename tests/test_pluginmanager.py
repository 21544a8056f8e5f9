"""The façade over plugins: isolated, timed, attributed, in a fixed order."""

import inspect
import logging
import re
import threading

import pytest

from jobagent import hookspecs
from jobagent.config import Config
from jobagent.contracts import Context
from jobagent.errors import JobError, PluginError
from jobagent.events import Events
from jobagent.hookspecs import hookimpl
from jobagent.model import Environment, Job
from jobagent.pluginmanager import Plugins, load


def plugins(timeout_s=5.0):
    return Plugins(Config({"plugins": {"hook_timeout_s": timeout_s}}))


def context(tmp_path):
    return Context(Config(), tmp_path, Events(), "Linux-x86_64")


class Good:
    @hookimpl
    def jobagent_machine_attributes(self):
        return {"Good": 1}


class Raising:
    @hookimpl
    def jobagent_machine_attributes(self):
        raise RuntimeError("boom\nsecond line")


class Hanging:
    def __init__(self):
        self.release = threading.Event()

    @hookimpl
    def jobagent_machine_attributes(self):
        self.release.wait(60)


@pytest.mark.acceptance(30)
def test_a_raising_plugin_costs_only_itself_and_is_named(caplog):
    manager = plugins()
    manager.register(Raising(), "raising", "some-dist")
    manager.register(Good(), "good")
    assert manager.machine_attributes() == {"Good": 1}
    message = caplog.records[0].getMessage()
    assert "plugin raising (some-dist) in jobagent_machine_attributes: RuntimeError: boom second line" in message


@pytest.mark.acceptance(30)
def test_a_hanging_plugin_is_left_behind(caplog):
    manager, hanging = plugins(timeout_s=0.1), Hanging()
    manager.register(hanging, "hanging")
    manager.register(Good(), "good")
    try:
        assert manager.machine_attributes() == {"Good": 1}
    finally:
        hanging.release.set()
    assert "no answer in 0.1 s" in caplog.text


def test_a_misspelt_hook_is_refused():
    class Misspelt:
        @hookimpl
        def jobagent_machine_atributes(self):
            return {}

    with pytest.raises(PluginError, match="jobagent_machine_atributes"):
        plugins().register(Misspelt(), "misspelt")


def test_a_wrong_argument_is_refused():
    class Wrong:
        @hookimpl
        def jobagent_cleanup(self, jobb):
            return None

    with pytest.raises(PluginError, match="jobb"):
        plugins().register(Wrong(), "wrong")


def test_only_before_payload_may_refuse_a_job(caplog):
    class Refusing:
        @hookimpl
        def jobagent_before_payload(self, job):
            raise JobError("not on my site")

        @hookimpl
        def jobagent_after_payload(self, job):
            raise JobError("too late")

    manager = plugins()
    manager.register(Refusing(), "refusing")
    with pytest.raises(JobError, match="not on my site"):
        manager.before_payload(Job("jdl"), (), Environment({}))
    with caplog.at_level(logging.ERROR):
        manager.after_payload(Job("jdl"), None)
    assert "too late" in caplog.text


def test_a_broken_verifier_is_never_passed_over(tmp_path):
    class Broken:
        @hookimpl
        def jobagent_verifiers(self, context):
            raise OSError("no digest library")

    manager = plugins()
    manager.register(Broken(), "broken")
    with pytest.raises(PluginError, match="no digest library"):
        manager.verifiers(context(tmp_path))


def test_a_cache_that_cannot_be_made_names_its_plugin(tmp_path):
    class Broken:
        @hookimpl
        def jobagent_cache(self, context):
            return lambda context: {}["burst-buffer"]

    manager = plugins()
    manager.register(Broken(), "broken", "some-dist")
    with pytest.raises(PluginError, match=r"broken \(some-dist\) in jobagent_cache: KeyError: 'burst-buffer'"):
        manager.cache(context(tmp_path))


def test_first_result_goes_on_past_a_plugin_that_raises(tmp_path):
    class Raises:
        @hookimpl
        def jobagent_eviction_order(self, entries):
            raise ValueError("no order")

    class Chooses:
        @hookimpl
        def jobagent_eviction_order(self, entries):
            return ["chosen"]

    manager = plugins()
    manager.register(Chooses(), "b")
    manager.register(Raises(), "a")
    assert manager.eviction_order([]) == ["chosen"]


def test_the_built_in_plugins_load_and_none_is_broken():
    states = {info.name: info.state for info in load(Config()).infos}
    assert {n for n, s in states.items() if s not in {"on", "off"}} == set()
    assert states["sharedcache"] == "off"


def hooks():
    return sorted(n for n, _ in inspect.getmembers(hookspecs, inspect.isfunction) if n.startswith("jobagent_"))


@pytest.mark.parametrize("name", hooks())
def test_every_hook_is_documented_with_an_example(name):
    text = inspect.getdoc(getattr(hookspecs, name)) or ""
    assert re.search(rf"Example:\n\s+@hookimpl\n\s+def {name}\(", text)
