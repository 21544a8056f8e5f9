"""Jobs of each dialect run by `jobagent run`, with no workload manager and no packages."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from jobagent.condor.language import alien_names
from jobagent.errors import DiskFull, JobSyntaxError, PayloadNotRunnable
from jobagent.model import InputFile

RUN_SH = '#!/bin/sh\necho "$1|$2|$ALIEN_JDL_PERIOD$PERIOD" > result.txt\ncat input.txt >> result.txt\n'
JDL = """Executable = "/alice/bin/run.sh"; Arguments = "$1 'b c'"; InputFile = {"LF:/alice/cern.ch/sim/input.txt"};
OutputFile = {"result.txt"}; JDLVariables = {"Period"}; Period = "LHC26a"; Validationcommand = "check.sh";"""
SUBMIT = """executable = run.sh
arguments = "$(first) 'b c'"
environment = "PERIOD=LHC26a"
transfer_input_files = input.txt
transfer_output_files = result.txt
queue 3 first in (a)
"""
CLASSAD = """[ Cmd = "run.sh"; Arguments = "a 'b c'"; Environment = "PERIOD=LHC26a"; TransferInput = "input.txt";
TransferOutput = "result.txt" ]"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.sh").write_text(RUN_SH)
    (tmp_path / "check.sh").write_text("#!/bin/sh\ngrep -q LHC26a result.txt\n")
    (tmp_path / "input.txt").write_text("input\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def call(job, *words, stdin=None):
        argv = [sys.executable, "-m", "jobagent", "run", job, *words, "--quiet", "--output", tmp_path / "out"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(scratch)}
        ended = subprocess.run(
            argv, cwd=tmp_path, env=environment, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )
        assert list(scratch.iterdir()) == []
        return ended

    return call


@pytest.mark.parametrize(
    ("name", "text", "words"), [("j.jdl", JDL, ["a"]), ("j.sub", SUBMIT, []), ("j.ad", CLASSAD, [])]
)
def test_the_same_job_runs_from_every_dialect(run, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    ended = run(tmp_path / name, *words)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "result.txt").read_text() == "a|b c|LHC26a\ninput\n"


def test_a_job_comes_from_standard_input_too(run, tmp_path):
    assert run("-", stdin=CLASSAD).returncode == 0
    assert (tmp_path / "out" / "result.txt").exists()


def test_a_name_of_aliens_catalogue_that_is_nowhere_is_said_so(run, tmp_path):
    (tmp_path / "j.jdl").write_text('Executable = "run.sh"; InputFile = "LF:/alice/gone.C";')
    ended = run(tmp_path / "j.jdl")
    assert ended.returncode == PayloadNotRunnable.exit_code
    assert "LF:/alice/gone.C" in ended.stderr and str(tmp_path) in ended.stderr


@pytest.mark.acceptance(28)
def test_shell_characters_in_a_job_never_reach_a_shell(run, tmp_path):
    (tmp_path / "show.sh").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > result.txt\n')
    words = ["$(touch pwned)", "`touch pwned`", ";touch pwned", "a|b", "&& touch pwned", "../../x"]
    quoted = " ".join(f"'{word}'" for word in words)
    (tmp_path / "j.jdl").write_text(f'Executable = "show.sh"; Arguments = "{quoted}"; OutputFile = "result.txt";')
    assert run(tmp_path / "j.jdl").returncode == 0
    assert (tmp_path / "out" / "result.txt").read_text().splitlines() == words
    assert not list(tmp_path.rglob("pwned"))
    for key, value in (("Packages", "$(touch pwned)"), ("OutputFile", "../../pwned"), ("InputFile", "LF:/../pwned")):
        (tmp_path / "j.jdl").write_text(f'Executable = "show.sh"; {key} = "{value}";')
        assert run(tmp_path / "j.jdl").returncode == JobSyntaxError.exit_code
    assert not list(tmp_path.rglob("pwned"))


def test_the_file_with_the_longest_common_end_of_path_stands_for_an_alien_name():
    there = {"sim/run.C", "run.C"}
    assert alien_names.beside("LF:/alice/cern.ch/sim/run.C", there.__contains__) == "sim/run.C"
    assert alien_names.beside("lf:/alice/other/run.C", there.__contains__) == "run.C"
    assert alien_names.beside("LF:/alice/x.C", there.__contains__) is None
    assert alien_names.beside("LF:/alice/../run.C", there.__contains__) is None


def test_a_full_disk_is_said_while_staging(tmp_path, monkeypatch):
    (tmp_path / "x.C").write_text("x")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(alien_names.shutil, "copy", full)
    staging = alien_names.FilesBesideTheJob()
    with pytest.raises(DiskFull, match=r"no room for input x\.C"):
        staging.stage(InputFile("LF:/a/x.C", "x.C"), tmp_path / "w" / "x.C", base_directory=tmp_path, deadline=0.0)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["x.C"]


def test_staged_files_keep_their_right_to_be_executed(tmp_path):
    program = tmp_path / "x.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    target = Path(tmp_path / "2" / "x.sh")
    staging = alien_names.FilesBesideTheJob()
    assert staging.stage(InputFile("LF:/a/x.sh", "2/x.sh"), target, base_directory=tmp_path, deadline=0.0) == 10
    assert target.stat().st_mode & 0o111
