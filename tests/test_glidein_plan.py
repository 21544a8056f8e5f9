"""What a glide-in decides before it starts anything: its slot, its token, its configuration, its self-check."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest

from jobagent.condor.pilots import glidein_config, slot
from jobagent.condor.pilots.glidein import build_of, self_check, tree_of
from jobagent.condor.pilots.glidein_settings import GlideinSettings
from jobagent.errors import ConfigurationError, PoolTokenRefused

NOW_S = 1_700_000_000.0
SETTINGS = GlideinSettings(pool="vo.example:9618")


def make_token(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part(claims)}.signature"


def slot_of(environ: dict[str, str], settings: GlideinSettings = SETTINGS, memory_mb: int = 64_000) -> slot.Slot:
    return slot.of_environment(settings, environ, now_s=NOW_S, uptime_s=1000.0, node_memory_mb=memory_mb)


# --- the slot


def test_a_slot_without_a_word_is_one_core() -> None:
    assert slot_of({}) == slot.Slot(1, 2000, 0)


def test_settings_of_the_vo_win() -> None:
    settings = GlideinSettings(cpus=4, memory_mb=5000)
    assert slot_of({"SLURM_CPUS_ON_NODE": "8"}, settings) == slot.Slot(4, 5000, 0)


def test_condors_machine_ad_is_read(tmp_path: Path) -> None:
    ad = tmp_path / "machine.ad"
    ad.write_text("Cpus = 8\nMemory = 12000\nTotalCpus = 64\n")
    assert slot_of({"_CONDOR_MACHINE_AD": str(ad)}) == slot.Slot(8, 12000, 0)


@pytest.mark.parametrize(("environ", "cpus"), [({"SLURM_CPUS_ON_NODE": "16"}, 16), ({"PBS_NCPUS": "3"}, 3)])
def test_other_batch_systems_say_their_cores(environ: dict[str, str], cpus: int) -> None:
    assert slot_of(environ) == slot.Slot(cpus, 2000 * cpus, 0)


def test_memory_is_never_more_than_the_nodes() -> None:
    assert slot_of({"SLURM_CPUS_ON_NODE": "16"}, memory_mb=9000).memory_mb == 9000


def test_time_runs_from_the_pilots_start() -> None:
    environ = {"JOBAGENT_WALL_S": "3600", "JOBAGENT_PILOT_STARTED_CS": "90000"}  # 900 s after boot, it is 1000 now
    assert slot_of(environ).ends_s == NOW_S + 3600 - 100


@pytest.mark.parametrize("text", ["", "many", "-1", "1e999", "nan"])
def test_nonsense_of_a_batch_system_is_ignored(text: str) -> None:
    assert slot_of({"SLURM_CPUS_ON_NODE": text, "JOBAGENT_WALL_S": text}) == slot.Slot(1, 2000, 0)


# --- the token


def test_a_good_token_is_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(make_token(exp=NOW_S + 60) + "\n")
    environ = {"JOBAGENT_TOKEN_FILE": str(path)}
    assert slot.read_token(SETTINGS, environ, now_s=NOW_S) == make_token(exp=NOW_S + 60)


def test_an_expired_token_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(make_token(exp=NOW_S - 60))
    with pytest.raises(PoolTokenRefused, match="expired 60 s ago") as caught:
        slot.read_token(SETTINGS, {"JOBAGENT_TOKEN_FILE": str(path)}, now_s=NOW_S)
    assert caught.value.exit_code == 245


@pytest.mark.parametrize("text", ["", "nonsense", "a.b.c", "a.!!!.c", make_token()[:10], "a." + "e30x" + ".c"])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(PoolTokenRefused, match="holds no IDTOKEN"):
        slot.read_token(SETTINGS, {"JOBAGENT_TOKEN_FILE": str(path)}, now_s=NOW_S)


def test_a_missing_token_is_a_configuration_error(tmp_path: Path) -> None:
    for environ in ({}, {"JOBAGENT_TOKEN_FILE": str(tmp_path / "none")}):
        with pytest.raises(ConfigurationError):
            slot.read_token(SETTINGS, environ, now_s=NOW_S)


# --- the configuration

FACTS = glidein_config.Facts(
    directory=Path("/scratch/g"),
    tree=Path("/cache/condor"),
    libexec=Path("/scratch/g/libexec"),
    settings=SETTINGS,
    slot=slot.Slot(8, 16000, 0),
    agent_config="JOBAGENT = $(JOBAGENT_LIBEXEC)/node\nDAEMON_LIST = $(DAEMON_LIST) JOBAGENT\n",
    site="site-a",
    pilot="17-4",
    batch_job="site-a/3.0",
)


def parameters(facts: glidein_config.Facts) -> dict[str, str]:
    """The last value of each parameter, as HTCondor takes it."""
    lines = [
        line.partition("=") for line in glidein_config.text(facts).splitlines() if "=" in line and line[0] != "#"
    ]
    return {name.strip(): value.strip() for name, _, value in lines}


def test_the_whole_slot_is_offered_in_parts() -> None:
    found = parameters(FACTS)
    assert (found["NUM_CPUS"], found["MEMORY"], found["SLOT_TYPE_1_PARTITIONABLE"]) == ("8", "16000", "true")


def test_the_node_service_is_not_the_masters() -> None:
    assert parameters(FACTS)["DAEMON_LIST"] == "MASTER, STARTD"


def test_without_a_limit_jobs_need_only_a_ready_node() -> None:
    assert parameters(FACTS)["START"] == '($(START)) && MY.GlideinReason == "" && MY.JobAgentReady =?= true'


def test_with_a_limit_jobs_must_fit_into_the_rest_of_the_slots_time() -> None:
    found = parameters(dataclasses.replace(FACTS, slot=slot.Slot(8, 16000, 5000)))
    assert "time() < MY.GlideinRetires" in found["START"] and "AllowedExecuteDuration" in found["START"]
    assert (found["GlideinEnds"], found["GlideinRetires"]) == ("5000", str(5000 - SETTINGS.retire_s))


def test_everything_that_sites_match_on_is_in_the_ad() -> None:
    found = parameters(FACTS)
    for name in glidein_config.attributes(FACTS):
        assert name in found["STARTD_ATTRS"].split() and name in found


def test_behind_nat_the_pool_reaches_it_through_its_collector() -> None:
    assert parameters(FACTS)["CCB_ADDRESS"] == "$(COLLECTOR_HOST)"
    reachable = dataclasses.replace(FACTS, settings=dataclasses.replace(SETTINGS, is_reachable=True))
    assert "CCB_ADDRESS" not in parameters(reachable)


@pytest.mark.parametrize(("idle_s", "interval"), [(1, "10"), (60, "15"), (600, "150"), (7200, "300")])
def test_an_idle_slot_ends_soon_after_its_time_and_the_pool_hears_not_too_often(idle_s: int, interval: str) -> None:
    found = parameters(dataclasses.replace(FACTS, settings=dataclasses.replace(SETTINGS, idle_s=idle_s)))
    assert (found["STARTD_NOCLAIM_SHUTDOWN"], found["UPDATE_INTERVAL"]) == (str(idle_s), interval)


def test_a_vos_own_lines_come_last() -> None:
    own = dataclasses.replace(FACTS, settings=dataclasses.replace(SETTINGS, condor_config="NUM_CPUS = 3"))
    assert parameters(own)["NUM_CPUS"] == "3"


# --- the rest


@pytest.mark.parametrize(
    ("free_bytes", "ends_s", "reason"),
    [
        (10**12, 0, ""),
        (10**6, 0, "0 MB free for jobs, 476 MB are needed"),
        (10**12, NOW_S + 10_000, ""),
        (10**12, NOW_S + 500, "the slot's time ends in 500 s, no job is taken in its last 600 s"),
    ],
)
def test_self_check(free_bytes: int, ends_s: float, reason: str) -> None:
    assert self_check(slot.Slot(1, 1, int(ends_s)), SETTINGS, free_bytes, now_s=NOW_S) == reason


def test_trees_are_found_by_package_name() -> None:
    trees = {"VO_ALICE@HTCondorWorker::25": Path("/a"), "VO_ALICE@JobAgent::1": Path("/b")}
    for spec in ("JobAgent", "VO_ALICE@JobAgent", "JobAgent::1"):
        assert tree_of(spec, trees) == Path("/b")


def test_a_checkout_differs_from_every_build(tmp_path: Path) -> None:
    assert build_of(tmp_path) != build_of(tmp_path / "other")
