"""What `jobagent condor check` says of good and of bad machines."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from condor_site import Site

from jobagent.condor.execution_point import doctor
from jobagent.condor.execution_point.configure import ROLES, Installation, plan, template, write
from jobagent.condor.execution_point.doctor import Disk, Facts, Level, Web
from jobagent.condor.execution_point.facts import last_line, parameters_of
from jobagent.errors import ConfigurationError
from jobagent.testing import equipped
from jobagent.testing.equipped import EquippedPoint
from jobagent.testing.interpreter import Interpreter


@pytest.fixture
def healthy(tmp_path: Path) -> Facts:
    """A machine where nothing is wrong, with real files."""
    installation = Installation(
        python=("/usr/bin/python3",),
        code=Path("/usr/lib/jobagent"),
        libexec=tmp_path / "libexec",
        config_directory=tmp_path / "config.d",
        socket=tmp_path / "node.sock",
    )
    write(plan(installation))
    (tmp_path / "execute").mkdir()
    for part in (tmp_path, tmp_path.parent):
        part.chmod(0o755)
    parameters = {
        "DAEMON_LIST": "MASTER, STARTD JOBAGENT",
        "STARTD_CRON_JOBLIST": "JOBAGENT",
        "JOBAGENT_HOOK_PREPARE_JOB_BEFORE_TRANSFER": str(installation.libexec / "prepare"),
        "JOBAGENT_LIBEXEC": str(installation.libexec),
        "STARTER_DEFAULT_JOB_HOOK_KEYWORD": "JOBAGENT",
        "FILETRANSFER_PLUGINS": str(installation.libexec / "transfer"),
        "CHIRP_DELAYED_UPDATE_PREFIX": "Chirp*, JobAgent*",
        "STARTER.PIPE_BUFFER_MAX": "2097152",
        "START": "(true) && (MY.JobAgentReady =?= true)",
        "EXECUTE": str(tmp_path / "execute"),
        "CONDOR_IDS": f"{os.geteuid()}.{os.getegid()}",
        "SEC_DEFAULT_AUTHENTICATION_METHODS": "FS, IDTOKENS",
    }
    return Facts(
        parameters=parameters,
        version="25.14.1",
        bindings="25.14.1",
        is_root=True,
        socket_mode=0o666,
        status={"ready": True, "packages": [], "protection": "uid", "root": "/c"},
        disks=(Disk("cache", Path("/c"), 1 << 40, 10**7),),
        webs=(Web("catalogue", "http://c/metadata/timestamp.json", clock_offset_s=2.0),),
    )


def changed(facts: Facts, **parameters: str) -> Facts:
    return dataclasses.replace(facts, parameters={**facts.parameters, **parameters})


def complaints(facts: Facts) -> list[tuple[str, Level]]:
    found = doctor.examine(facts)
    assert all(f.remedy for f in found if f.level is not Level.OK), "a complaint without a remedy"
    return [(f.check, f.level) for f in found if f.level is not Level.OK]


def test_a_healthy_machine_gets_no_complaint(healthy: Facts) -> None:
    assert complaints(healthy) == []


def test_no_htcondor_at_all_is_one_error_and_stops_no_other_check(healthy: Facts) -> None:
    bare = dataclasses.replace(healthy, parameters={}, version="", condor_error="no condor_config_val in PATH")
    assert complaints(bare) == [("HTCondor", Level.ERROR)]
    assert "disk" in {finding.check for finding in doctor.examine(bare)}


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"DAEMON_LIST": "MASTER, STARTD"}, ("settings", Level.ERROR)),
        ({"START": "true"}, ("settings", Level.ERROR)),
        ({"CHIRP_DELAYED_UPDATE_PREFIX": "Chirp*"}, ("settings", Level.ERROR)),
        ({"JOBAGENT_HOOK_JOB_EXIT": "/x"}, ("settings", Level.ERROR)),
        ({"EXECUTE": "/nowhere"}, ("EXECUTE", Level.ERROR)),
        ({"CONDOR_IDS": "4711.4711"}, ("EXECUTE", Level.ERROR)),
        ({"CONDOR_IDS": "", "EXECUTE": "/"}, ("EXECUTE", Level.ERROR)),
        ({"SEC_CLIENT_AUTHENTICATION_METHODS": "CLAIMTOBE"}, ("security", Level.WARNING)),
        ({"MOUNT_UNDER_SCRATCH": '"/tmp,/c"'}, ("cache", Level.ERROR)),
    ],
)
def test_each_wrong_setting_is_named(
    healthy: Facts, parameters: dict[str, str], complaint: tuple[str, Level]
) -> None:
    assert complaints(changed(healthy, **parameters)) == [complaint]


def test_whose_group_the_slots_directory_is_does_not_matter(healthy: Facts) -> None:
    assert complaints(changed(healthy, CONDOR_IDS=f"{os.geteuid()}.4711")) == []


def test_a_transfer_plugin_that_does_not_exist_is_named(healthy: Facts) -> None:
    ours = healthy.parameters["FILETRANSFER_PLUGINS"]
    assert complaints(changed(healthy, FILETRANSFER_PLUGINS=f"/gone/curl_plugin, {ours}")) == [
        ("transfer plugins", Level.WARNING)
    ]


def test_programs_that_jobs_could_change_are_an_error(healthy: Facts) -> None:
    Path(healthy.parameters["JOBAGENT_LIBEXEC"]).chmod(0o777)
    assert ("programs", Level.ERROR) in complaints(healthy)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": "10.0.9", "bindings": "10.0.9"}, ("HTCondor", Level.WARNING)),
        ({"bindings": "25.14.1", "version": "23.9.6"}, ("bindings", Level.WARNING)),
        ({"socket_mode": 0o600}, ("security", Level.ERROR)),
        ({"status": None, "service_error": "no answer"}, ("node service", Level.ERROR)),
        ({"port_error": "all taken"}, ("ports", Level.WARNING)),
        ({"start_error": "Permission denied"}, ("programs", Level.ERROR)),
        ({"disks": (Disk("EXECUTE", Path("/e"), 1 << 20, 10**7),)}, ("disk", Level.WARNING)),
        ({"webs": ()}, ("catalogue", Level.ERROR)),
        ({"webs": (Web("catalogue", "u", reason="refused"),)}, ("catalogue", Level.ERROR)),
        ({"webs": (Web("tracker", "u", reason="refused", is_optional=True),)}, ("tracker", Level.WARNING)),
        ({"webs": (Web("catalogue", "u", clock_offset_s=-300.0),)}, ("clock", Level.WARNING)),
        ({"webs": (Web("catalogue", "u", clock_offset_s=172800.0),)}, ("clock", Level.ERROR)),
    ],
)
def test_each_fault_of_the_machine_is_named(
    healthy: Facts, change: dict[str, object], complaint: tuple[str, Level]
) -> None:
    assert complaints(dataclasses.replace(healthy, **change)) == [complaint]


def test_an_unknown_role_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="known: execution-point"):
        plan(Installation((), tmp_path, tmp_path, tmp_path, tmp_path), ["worker"])


@pytest.mark.parametrize("role", ROLES)
def test_the_settings_name_no_path_of_any_machine(role: str) -> None:
    lines = [line for line in template(role).splitlines() if not line.startswith("#")]
    assert not [line for line in lines if "= /" in line]


def test_planning_writes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    assert plan(Installation(("python3",), directory, directory, directory, directory / "s"))
    assert not directory.exists()


def test_a_dump_of_parameters_is_read() -> None:
    dump = "# Configuration from machine x\nA = 1\nlower = a = b\nEMPTY = \n"
    assert parameters_of(dump) == {"A": "1", "LOWER": "a = b", "EMPTY": ""}


@pytest.mark.condor
def test_the_doctor_finds_a_working_machine_well(site: Site) -> None:
    point = site.point("ep1")
    healthy = check(point)
    assert [f for f in healthy if f["level"] == "error"] == []
    assert {"HTCondor", "settings", "programs", "node service", "catalogue", "tracker", "clock"} <= {
        f["check"] for f in healthy
    }


@pytest.mark.condor
def test_everything_that_can_be_wrong_is_found_at_once(site: Site, tmp_path: Path) -> None:
    """A machine of the pool, broken in every way that its files and its network can be."""
    point = site.point("ep1")
    programs = Path(shutil.copytree(point.point.directory / "libexec", tmp_path / "libexec"))
    programs.chmod(0o777)
    broken = {
        "DAEMON_LIST": "MASTER, STARTD",
        "FILETRANSFER_PLUGINS": "/gone",
        "JOBAGENT_HOOK_JOB_EXIT": "/bin/true",
        "JOBAGENT_LIBEXEC": programs,
        "EXECUTE": tmp_path / "execute",
        "MOUNT_UNDER_SCRATCH": f'"{point.cache.parent}"',
        "SEC_CLIENT_AUTHENTICATION_METHODS": "CLAIMTOBE",
    }
    settings = tmp_path / "jobagent.toml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        text = point.settings.read_text()
        text = text.replace(site.world.url, "http://127.0.0.1:9").replace("0o666", "0o600")
        text = text.replace(f'address = "{point.point.address}"', 'address = "127.0.0.1"')
        settings.write_text(f'{text}[swarm]\nports = "{taken.getsockname()[1]}"\n')
        silent = tmp_path / "silent.toml"
        silent.write_text(settings.read_text().replace(str(point.socket), f"{tmp_path}/gone.sock"))
        point.point.configure("99-broken", "".join(f"{name} = {value}\n" for name, value in broken.items()))
        try:
            answering, mute = (check(dataclasses.replace(point, settings=path)) for path in (settings, silent))
        finally:
            (point.point.directory / "config.d" / "99-broken").unlink()
    ill = {(f["check"], f["level"]) for f in answering + mute if f["level"] != "ok"}
    wanted = {("settings", "error"), ("programs", "error"), ("transfer plugins", "warning"), ("EXECUTE", "error"),
              ("security", "warning"), ("cache", "error"), ("node service", "error"), ("ports", "warning"),
              ("catalogue", "error"), ("tracker", "warning")}  # fmt: skip
    wanted |= {("security", "error")} if os.geteuid() == 0 else set()  # jobs of other users cannot ask
    assert wanted <= ill
    for finding in answering + mute:
        assert "\n" not in finding["message"]
        assert bool(finding["remedy"]) is (finding["level"] != "ok"), finding


@pytest.mark.condor
def test_a_running_machine_is_enabled_and_disabled_by_a_file_and_a_reconfig(site: Site, python: Interpreter) -> None:
    new = equipped.add(site.pool, "new", site.world, python, config="START = false", is_enabled=False)
    directory = new.point.directory
    assert {"settings", "node service"} <= {f["check"] for f in check(new) if f["level"] == "error"}
    done = agent(new, "configure", "--libexec", directory / "libexec", "--python", python.program)
    assert done.returncode == 0, done.stderr
    written = directory / "config.d" / "50-jobagent-execution-point.conf"
    assert str(written) in done.stdout
    new.point.tool("condor_reconfig")
    new.ask("hello")
    site.pool.wait_until(lambda: ready(site) == [True])
    assert [f for f in check(new) if f["level"] == "error"] == []
    written.unlink()
    new.point.tool("condor_reconfig")
    site.pool.wait_until(lambda: not new.socket.exists())
    site.pool.wait_until(lambda: ready(site) == [None])


def ready(site: Site) -> list[object]:
    return [ad.get("JobAgentReady") for ad in site.pool.machines("EPName", "JobAgentReady") if ad["EPName"] == "new"]


def test_why_the_node_service_does_not_start_is_the_end_of_its_log(healthy: Facts, tmp_path: Path) -> None:
    log = tmp_path / "JobAgentLog"
    log.write_bytes(b"x" * 20_000 + b"\nearlier\njobagent: [node] user is 'ghost', which does not exist\n\n")
    gone = {"status": None, "service_error": "no answer", "service_log_end": last_line(log)}
    (finding,) = doctor.service(dataclasses.replace(healthy, **gone))  # type: ignore[arg-type]
    assert finding.message == "no answer; its log ends with: jobagent: [node] user is 'ghost', which does not exist"
    assert last_line(tmp_path / "none") == ""


def check(point: EquippedPoint) -> list[dict[str, str]]:
    done = agent(point, "check", "--json")
    assert done.stdout, done.stderr
    return list(json.loads(done.stdout))


def agent(point: EquippedPoint, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `jobagent condor` as the admin of that machine."""
    argv = [sys.executable, "-m", "jobagent", "--config", point.settings, "condor", *words]
    return subprocess.run(argv, env=point.point.environment, capture_output=True, text=True, timeout=60, check=False)
