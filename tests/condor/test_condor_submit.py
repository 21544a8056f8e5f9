"""`jobagent submit`, `jobs` and `logs` against a real schedd."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from condor_site import Site

from jobagent.condor.language import arguments as notation
from jobagent.condor.language import environment
from jobagent.condor.language import submit as submit_files
from jobagent.testing import joblog

pytestmark = pytest.mark.condor

Client = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def client(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """Run `jobagent` commands as a user of the pool with a token."""
    directory = tmp_path_factory.mktemp("client")
    config = site.pool.client_config(directory)
    settings = directory / "jobagent.toml"
    settings.write_text(
        f'[catalogue]\nurls = ["{site.world.url}"]\nroot = "{site.world.root}"\n[job]\nvo = "alice"\n'
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory), "CONDOR_CONFIG": str(config)}

    def call(*words: str | Path, cwd: Path = directory) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "jobagent", "--config", settings, *map(str, words)]
        return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return call


def cluster_of(ended: subprocess.CompletedProcess[str]) -> int:
    assert ended.returncode == 0, ended.stderr
    return int(json.loads(ended.stdout)["cluster"])


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Path]:
    """Write a job's file and the files beside it."""

    def write(text: str, name: str = "job.jdl", **files: str) -> Path:
        for other, content in files.items():
            (tmp_path / other.replace("__", ".")).write_text(content)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_a_jdl_runs_with_its_packages_and_its_story_can_be_read(
    site: Site, client: Client, job: Callable[..., Path]
) -> None:
    path = job(
        """Executable = "run.sh"; Arguments = "$1 'two words'"; Packages = {"Tool::1"}; TTL = "1 hour";
        InputFile = {"LF:/alice/cern.ch/user/j/jdoe/input.txt"}; OutputFile = {"result.txt", "stdout"};
        Validationcommand = "/alice/validation/check.sh"; JDLVariables = {"Period"}; Period = "LHC26a";
        Jobtag = {"comment:a test"};""",
        run__sh='#!/bin/sh\nhello\ncat input.txt > result.txt\necho "$1-$2 $ALIEN_JDL_PERIOD" >> result.txt\n',
        check__sh="#!/bin/sh\ngrep -q LHC26a result.txt\n",
        input__txt="the input\n",
    )
    cluster = cluster_of(client("submit", path, "one", "--json"))
    (event,) = site.pool.jobs.wait(cluster)
    assert event.kind == joblog.TERMINATED and event.fields["ReturnValue"] == 0, event.reason
    (ad,) = site.pool.queue(cluster)
    assert ad["Jobtag"] == ["comment:a test"] and ad["AllowedJobDuration"] == 3600
    ended = client("jobs", str(cluster), "--fetch", "--json")
    (record,) = json.loads(ended.stdout)
    assert record["state"] == "completed" and record["exit_code"] == 0 and record["program"] == "run.sh"
    assert record["packages"] == [site.packages.base, site.packages.tool]
    assert (path.parent / "result.txt").read_text() == "the input\none-two words LHC26a\n"
    assert (path.parent / "stdout").read_text().startswith("hello from tool 1")
    story = client("logs", f"{cluster}.0").stdout
    assert f"package    {site.packages.tool} sha256" in story and "exit 0" in story
    assert f"generic jobagent: {site.packages.base}, {site.packages.tool} ready after" in story
    table = client("jobs", str(cluster)).stdout
    assert f"{cluster}.0" in table and "completed 0" in table and site.packages.tool in table


def test_a_job_whose_validation_refuses_is_held_with_the_reason(
    site: Site, client: Client, job: Callable[..., Path]
) -> None:
    path = job('Executable = "/bin/true"; Validationcommand = "no.sh";', no__sh="#!/bin/sh\nexit 1\n")
    cluster = cluster_of(client("submit", path, "--json"))
    site.pool.wait_until(lambda: site.pool.queue(cluster)[0].get("HoldReasonSubCode") == 217)
    assert "Validationcommand" in site.pool.queue(cluster)[0]["HoldReason"]
    (record,) = json.loads(client("jobs", str(cluster), "--json").stdout)
    assert record["state"] == "held" and record["hold_subcode"] == 217
    assert "held" in client("logs", str(cluster)).stdout
    site.pool.central.tool("condor_rm", str(cluster))


@pytest.mark.parametrize(
    ("wanted", "code", "said"),
    [
        ("Tol::1", 211, "nearest names: Tool"),
        ("Tool::99", 211, "versions there are: 1"),
        ("VO_LHCB@Tool", 211, "the VOs: alice"),
        ('Tool::1", "Conflicting::1', 212, "cannot both be used"),
        ("Banned", 211, "banned"),
        ("a b", 214, "not of the form"),
    ],
)
@pytest.mark.acceptance(29)
def test_packages_that_cannot_be_had_are_refused_at_submit(
    client: Client, job: Callable[..., Path], wanted: str, code: int, said: str
) -> None:
    ended = client("submit", job(f'Executable = "/bin/true"; Packages = {{"{wanted}"}};'))
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr and ended.stderr.strip().count("\n") == 0


def test_a_missing_input_is_refused_at_submit(client: Client, job: Callable[..., Path]) -> None:
    ended = client("submit", job('Executable = "/bin/true"; InputFile = {"LF:/alice/gone.C"};'))
    assert ended.returncode == 219 and "LF:/alice/gone.C" in ended.stderr


def test_dry_run_queues_nothing_and_prints_what_condor_submit_takes(
    site: Site, client: Client, job: Callable[..., Path]
) -> None:
    path = job('Executable = "/bin/true"; Packages = {"Tool::1"}; Requirements = other.Memory > 1;')
    before = len(json.loads(client("jobs", "--json", "--limit", "0").stdout))
    ended = client("submit", path, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(client("jobs", "--json", "--limit", "0").stdout)) == before
    again = submit_files.parse(ended.stdout)
    assert [str(p) for p in again.packages] == ["Tool::1"]
    assert again.requirements == "(TARGET.Memory > 1) && (TARGET.JobAgentReady =?= true)"


def test_a_submit_file_with_an_array_is_queued_whole(site: Site, client: Client, job: Callable[..., Path]) -> None:
    text = """executable = run.sh
arguments = "$(Process) $(word)"
MY.Packages = "Tool::1, VO_ALICE@Base"
output = out.$(Process)
should_transfer_files = YES
request_memory = 64
request_disk = 1MB
log = job.log
queue 2 word in (a, b)
"""
    path = job(text, "job.sub", run__sh="#!/bin/sh\nhello >/dev/null && echo $1 $2\n")
    cluster = cluster_of(client("submit", path, "--json"))
    site.pool.jobs.wait(cluster)
    assert client("jobs", str(cluster), "--fetch").returncode == 0
    assert sorted((path.parent / f"out.{n}").read_text() for n in range(4)) == ["0 a\n", "1 a\n", "2 b\n", "3 b\n"]


def test_an_unknown_pool_or_schedd_is_one_line(client: Client, job: Callable[..., Path]) -> None:
    path = job('Executable = "/bin/true";')
    for options in (["--pool", "127.0.0.1:1"], ["--name", "nobody"]):
        ended = client("submit", path, *options)
        assert ended.returncode == 230, ended.stderr
        assert "cannot find" in ended.stderr and ended.stderr.strip().count("\n") == 0
    assert client("logs", "x").returncode == 2
    assert client("logs", "999999").returncode == 210


def _ad_of_condor_submit(site: Site, path: Path) -> dict[str, Any]:
    text = path.read_text()
    cluster = site.pool.submit(f"hold = true\n{text}", files={"run.sh": "#!/bin/sh\n"})
    (ad,) = site.pool.queue(cluster)
    site.pool.central.tool("condor_rm", str(cluster))
    return ad


def test_submit_files_mean_what_condor_submit_makes_of_them(
    site: Site, client: Client, job: Callable[..., Path]
) -> None:
    text = r"""executable = run.sh
arguments = "one 'two words' ""q"" it''s $(DOLLAR)(x) \ "
environment = "A=1 B='x y' C='''' D=""d"" E=\"
MY.Packages = { "VO_ALICE@ROOT::v6-36", "a\b" }
MY.Text = "back\slash \"quoted\" end\"
request_memory = 1.5GB
request_disk = 10MB
request_cpus = 2
allowed_job_duration = 60 * 60
transfer_input_files = a, b
transfer_executable = false
should_transfer_files = yes
queue
"""
    theirs = _ad_of_condor_submit(site, job(text.replace("= a, b", "= run.sh, /etc/hostname"), "x.sub"))
    found = submit_files.parse(text.replace(r', "a\b"', ""))
    assert notation.split(theirs["Arguments"]) == found.arguments
    assert environment.parse(theirs["Environment"]) == dict(found.environment)
    assert theirs["Packages"] == ["VO_ALICE@ROOT::v6-36", "a\\b"]
    assert theirs["Text"] == 'back\\slash "quoted" end\\'
    assert (theirs["RequestMemory"], theirs["RequestDisk"], theirs["RequestCpus"]) == (
        found.memory_bytes >> 20,
        found.disk_bytes >> 10,
        found.cpus,
    )
    assert theirs["Cmd"].endswith("run.sh")
