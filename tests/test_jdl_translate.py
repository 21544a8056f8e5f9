"""Job descriptions in HTCondor's terms: the mapping, what the produced expressions evaluate to, round trips."""

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path

import classad2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobagent.cli.main import main
from jobagent.condor.access_point import describe, matching, translate
from jobagent.condor.language import ads, jdl, lexemes, submit, submit_language
from jobagent.errors import JobSyntaxError
from jobagent.model import PackageSpec

MATERIAL = Path(__file__).resolve().parents[2] / "shared" / "material" / "jdl"
REAL = sorted(p for p in MATERIAL.rglob("*.jdl") if p.parent.name != "dirac")

CERN = classad2.ClassAd(
    """[ Arch = "X86_64"; Memory = 8000; Disk = 50000000; JobAgentReady = true; CE = "ALICE::CERN::LCG";
    GridPartitions = { "quickreco", "PDC08_2" };
    JobAgentCachedPackages = { "VO_ALICE@ROOT::v6-36", "VO_ALICE@GEANT3::v4.2" } ]"""
)
EMPTY = classad2.ClassAd(
    '[ Arch = "X86_64"; Memory = 8000; Disk = 1000; JobAgentReady = true; JobAgentCachedPackages = {} ]'
)
BROKEN = classad2.ClassAd("[ Memory = 8000; Disk = 50000000; JobAgentReady = false; JobAgentCachedPackages = {} ]")
PLAIN = classad2.ClassAd('[ Arch = "X86_64"; Memory = 8000; Disk = 50000000 ]')
MACHINES = {"cern": CERN, "empty": EMPTY, "broken": BROKEN, "plain": PLAIN}


def everywhere(path):
    return True


def nowhere(path):
    return False


def submission(text, *arguments, is_file=nowhere, **options):
    return translate.submission(jdl.parse(text, arguments=arguments, **options), is_file=is_file)


def matching_machines(text):
    job = jdl.parse(text)
    mine = classad2.ClassAd(describe.as_classad(job))
    expression = mine.lookup("Requirements")
    return {name for name, machine in MACHINES.items() if expression.eval(scope=mine, target=machine) is True}


# requirements and rank, evaluated by HTCondor


@pytest.mark.parametrize(
    ("requirements", "machines"),
    [
        ('member(other.GridPartitions,"quickreco")', {"cern"}),
        ('member("quickreco", other.GridPartitions)', {"cern"}),
        ('( other.CE == "ALICE::CERN::LCG" )', {"cern"}),
        ('other.ce=="nowhere"', set()),
        ("other.LocalDiskSpace > 5000*1024", {"cern"}),
        ("other.Memory >= 4000", {"cern", "empty"}),
        ('member(other.InstalledPackages, "VO_ALICE@ROOT::v6-36")', {"cern"}),
        ('member(other.Packages, "VO_ALICE@ROOT::v6-36")', {"cern", "empty"}),
        ('member(other.Packages, "VO_ALICE@Other::1")', set()),
        ('!member(other.InstalledPackages, "VO_ALICE@ROOT::v6-36") && other.Disk < self.Wanted', {"empty"}),
        ('other.CE =?= undefined || member(other.GridPartitions, strcat("PDC08", "_2"))', {"cern", "empty"}),
    ],
)
def test_requirements_mean_the_same_to_htcondor(requirements, machines):
    text = f'Executable="a"; Packages={{"VO_ALICE@ROOT::v6-36"}}; Wanted = 2000; Requirements = {requirements};'
    assert matching_machines(text) == machines


def test_jobs_with_packages_run_only_where_the_agent_is_ready():
    assert matching_machines('Executable="a"; Packages="VO_ALICE@X::1"; Requirements = true;') == {"cern", "empty"}
    assert matching_machines('Executable="a"; Requirements = other.Memory > 1;') == set(MACHINES)


@pytest.mark.parametrize(
    ("package", "machines"),
    [
        ("VO_ALICE@ROOT::v6-36", {"cern"}),
        ("VO_ALICE@ROOT", {"cern"}),
        ("ROOT::v6-36", {"cern"}),
        ("GEANT3::v4.2", {"cern"}),
        ("GEANT3::v4x2", set()),
        ("VO_ALICE@ROOT::v6-3", set()),
        ("VO_LHCB@ROOT", set()),
        ("OOT", set()),
    ],
)
def test_packages_pre_installed_matches_machines_that_have_them(package, machines):
    assert matching_machines(f'Executable="a"; Packages={{"{package}"}}; PackagesPreInstalled = 1;') == machines


def test_rank_counts_the_packages_that_a_machine_has():
    job = jdl.parse('Executable="a"; Packages={"VO_ALICE@ROOT::v6-36","GEANT3","VO_ALICE@X::1"};')
    ad = classad2.ClassAd(describe.as_classad(job))
    ranks = {name: ad.lookup("Rank").eval(scope=ad, target=machine) for name, machine in MACHINES.items()}
    assert ranks == {"cern": 2, "empty": 0, "broken": 0, "plain": 0}


def test_what_only_some_sites_say_of_themselves_is_warned_of():
    assert "GridPartitions" in matching.translated('member(other.GridPartitions, "x")').warnings[0]
    assert matching.translated("other.Memory > 1 && other.InstalledPackages =!= undefined").warnings == ()


def _larger(inner):
    return st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||", "==", "+", "=?="]), inner).map(lambda t: f"({' '.join(t)})"),
        st.tuples(inner, inner).map(lambda t: f"member({', '.join(t)})"),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} ? {t[1]} : {t[2]})"),
        inner.map(lambda text: f"!{text}"),
        inner.map(lambda text: f"{{ {text} }}"),
    )


WORDS = st.sampled_from(["other.CE", "other.Memory", "1", '"x"', "self.TTL", "undefined", "true"])


@given(st.recursive(WORDS, _larger, max_leaves=12))
def test_translated_requirements_are_always_an_expression_of_htcondor(text):
    translated = matching.translated(text).text
    classad2.ExprTree(translated)
    assert "other" not in translated and "self" not in translated


# the mapping


def test_a_jdl_becomes_a_submit_file():
    found = submission(
        """Executable = "run.sh"; Arguments = "--n $1 'two words'"; Packages = {"VO_ALICE@ROOT::v6-36"};
        TTL = "2 hours"; Workdirectorysize = {"5000MB"}; Memorysize = "2GB"; CPUCores = 4; JDLVariables = {"A"};
        A = "x y";
        InputFile = {"a.C", "torrent://h/p/d.root"}; OutputFile = {"out.root", "stdout"}; Price = 1; User = "jdoe";
        Jobtag = {"comment:x"}; Requirements = other.Memory > 1000;""",
        "5",
        is_file=everywhere,
        base_directory=Path("/home/u"),
    )
    assert dict(found.commands) == {
        "executable": "/home/u/run.sh",
        "arguments": "\"--n 5 'two words'\"",
        "initialdir": "/home/u",
        "environment": "\"'ALIEN_JDL_A=x y' ALIEN_PACKAGES=VO_ALICE@ROOT::v6-36\"",
        "transfer_input_files": "a.C, torrent://h/p/d.root",
        "output": "stdout",
        "error": "stderr",
        "log": "job.log",
        "transfer_output_files": "out.root",
        "should_transfer_files": "YES",
        "when_to_transfer_output": "ON_EXIT",
        "request_cpus": "4",
        "request_memory": "2048MB",
        "request_disk": "5120000KB",
        "allowed_job_duration": "7200",
        "requirements": "(TARGET.Memory > 1000) && (TARGET.JobAgentReady =?= true)",
        "rank": 'ifThenElse(member("VO_ALICE@ROOT::v6-36", TARGET.JobAgentCachedPackages) ?: false, 1, 0)',
        "MY.WantRemoteUpdates": "true",
        "MY.Packages": '{ "VO_ALICE@ROOT::v6-36" }',
        "MY.Executable": '"run.sh"',
        "MY.TTL": '"2 hours"',
        "MY.Workdirectorysize": '{ "5000MB" }',
        "MY.Memorysize": '"2GB"',
        "MY.CPUCores": "4",
        "MY.JDLVariables": '{ "A" }',
        "MY.A": '"x y"',
        "MY.InputFile": '{ "a.C", "torrent://h/p/d.root" }',
        "MY.OutputFile": '{ "out.root", "stdout" }',
        "MY.Price": "1",
        "MY.JDL_User": '"jdoe"',
        "MY.Jobtag": '{ "comment:x" }',
        "MY.OrigRequirements": "other.Memory > 1000",
    }
    assert found.missing == ()


def test_a_program_that_is_no_file_here_is_looked_for_on_the_path_of_the_node():
    found = submission('Executable = "/alice/bin/aliroot"; Arguments = "-b";')
    assert found.commands["executable"] == "/usr/bin/env"
    assert found.commands["arguments"] == '"aliroot -b"'
    assert found.commands["transfer_executable"] == "false"


def test_a_program_that_comes_as_an_input_is_made_executable():
    found = submission('Executable = "run.sh"; InputFile = "torrent://h/p/run.sh";')
    assert found.commands["executable"].endswith("validated.sh")
    assert found.commands["arguments"] == "\"'' ./run.sh\""


def test_alien_names_become_the_files_of_that_name_beside_the_job():
    text = 'Executable = "a"; InputFile = {"LF:/alice/x/macro.C", "gone.C"};'
    found = submission(text, is_file=lambda path: str(path) == "macro.C")
    assert found.commands["transfer_input_files"] == "macro.C"
    assert found.missing == ("gone.C",)


def test_patterns_of_outputs_bring_back_everything_and_say_so():
    found = submission('Executable = "a"; Output = {"*.root", "x.log"};')
    assert "transfer_output_files" not in found.commands
    assert any("*.root" in w for w in found.warnings)


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.stem)
def test_no_attribute_of_a_real_jdl_is_lost_in_a_submit_file(path):
    job = jdl.parse(path.read_text(), arguments=list("abcdef"))
    text = translate.submission(job, is_file=nowhere).text()
    again = submit.parse(text)
    for name in job.attributes:
        if name.lower() not in {"arguments", "packages", "requirements"}:
            assert any(f"MY.{prefix}{name} = " in text for prefix in ("", "JDL_")), name
    assert again.packages == job.packages
    assert again.environment == job.environment
    assert (again.wall_limit_s, again.disk_bytes, again.memory_bytes) == (
        job.wall_limit_s, job.disk_bytes, job.memory_bytes,
    )  # fmt: skip


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.stem)
def test_a_real_jdl_is_the_same_job_as_its_classad(path):
    job = jdl.parse(path.read_text(), arguments=list("abcdef"))
    again = ads.parse(describe.as_classad(job))
    for field in ("executable", "arguments", "packages", "environment", "outputs", "stdout", "validation_command",
                  "wall_limit_s", "disk_bytes", "memory_bytes", "cpus", "is_preinstalled_only"):  # fmt: skip
        assert getattr(again, field) == getattr(job, field), field


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.stem)
def test_a_real_jdl_printed_as_jdl_is_the_same_job(path):
    job = jdl.parse(path.read_text(), arguments=list("abcdef"))
    again = jdl.parse(describe.as_jdl(job))
    assert dataclasses.replace(again, warnings=()) == dataclasses.replace(job, warnings=())


def test_an_ad_is_a_jdl_too():
    job = ads.parse(
        'Cmd = "a.sh"\nArguments = "1 \'b c\'"\nPackages = "VO_ALICE@R::1"\nRequestMemory = 100\nFoo = 3\n'
    )
    again = jdl.parse(describe.as_jdl(job))
    assert (again.executable, again.arguments, again.packages) == (job.executable, job.arguments, job.packages)
    assert again.memory_bytes == 100 << 20
    assert again.attributes["Foo"] == "3"


def test_an_ad_becomes_a_submit_file_without_what_htcondor_writes_itself():
    job = ads.parse(
        'Cmd = "a.sh"\nOwner = "u"\nClusterId = 3\nJobStatus = 2\nFoo = "x"\nPackages = {"VO_ALICE@R::1"}\n'
    )
    commands = translate.submission(job, is_file=nowhere).commands
    assert {name for name in commands if name.startswith("MY.")} == {
        "MY.Packages",
        "MY.Foo",
        "MY.WantRemoteUpdates",
    }


SUBMIT_FILE = 'executable = a\nv = 1\n+Packages = "VO_ALICE@R::2"\nrequirements = Memory > 5\nqueue 3 x in (a b)\n'


def test_a_submit_file_stays_as_it_is_but_for_the_wishes_about_machines():
    found = translate.submission(submit.parse(SUBMIT_FILE), is_file=nowhere)
    assert found.queue == "3 x in (a b)"
    assert found.commands["v"] == "1"
    assert found.commands["requirements"] == "(Memory > 5) && (TARGET.JobAgentReady =?= true)"
    assert found.commands["rank"].startswith("ifThenElse(member(")
    again = translate.submission(submit.parse(found.text()), is_file=nowhere)
    assert again.text() == found.text()


# text that is hard to say


ANY = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029"), max_size=30)
PLACE = re.compile(r"\$([1-9]|HOME)")  # a JDL's own: the job's arguments go there


@settings(deadline=None)
@given(
    st.lists(ANY, max_size=4),
    st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True), ANY, max_size=3),
)
@example(["$(x)", "$$(y)", "$ENV(HOME)", "$", "a'b", 'c"d', "", "\\"], {"A": "$(DOLLAR", "B": "'", "C": '"'})
def test_arguments_and_environment_arrive_as_they_were(words, variables):
    text = (
        f"executable = a\narguments = {submit_language.arguments(words)}\n"
        f"environment = {submit_language.variables(variables)}\nqueue\n"
    )
    job = submit.parse(text)
    undo = [w.replace("$$(DOLLARDOLLAR)", "$$") for w in job.arguments]
    assert undo == [w.replace("$$(DOLLARDOLLAR)", "$$") for w in words]
    assert {k: v.replace("$$(DOLLARDOLLAR)", "$$") for k, v in job.environment.items()} == variables


@settings(deadline=None)
@given(st.lists(ANY.filter(lambda text: not PLACE.search(text)), min_size=1, max_size=3))
@example(["$(x)\\"])
@example(['"\\"', "$$(y)"])
def test_attributes_arrive_as_they_were(values):
    text = jdl.parse(f"X = {{ {', '.join(map(lexemes.quote, values))} }};").attributes["X"]
    try:
        said = submit_language.expression(text)
    except JobSyntaxError:
        assert any(v.endswith("\\") for v in values)
        return
    again = submit.parse(f"executable = a\nMY.X = {said}\nqueue\n")
    expanded = classad2.ClassAd(f"[X = {text}]")["X"]
    assert list(expanded) == list(dict.fromkeys(values))
    assert "MY.X" in again.attributes


@pytest.mark.parametrize("name", ["a,b", "a\nb", " a", "b\\"])
def test_file_names_that_a_submit_file_cannot_say_are_refused(name):
    with pytest.raises(JobSyntaxError, match="cannot be said"):
        submit_language.text(name)


# the validation under HTCondor


def test_the_payload_is_validated_under_htcondor_too(tmp_path):
    found = submission('Executable = "run.sh"; Validationcommand = "/alice/validation/check.sh";', is_file=everywhere)
    assert found.commands["arguments"] == '"./check.sh ./run.sh"'
    assert found.commands["on_exit_hold"] == "ExitCode =?= 217"
    assert set(found.commands["transfer_input_files"].split(", ")) == {"/alice/validation/check.sh", "run.sh"}


@pytest.mark.parametrize(
    ("validation", "payload", "code", "said"),
    [
        ("exit 0", "exit 0", 0, ""),
        ("exit 0", "exit 3", 3, ""),
        ("exit 1", "exit 0", 217, "ERROR_V:"),
        ("exit 1", "exit 3", 3, ""),
        (None, "exit 0", 217, "ERROR_VN:"),
        ("exit 124", "exit 0", 217, "ERROR_VT:"),
        ("", 'test "$1" = "a b" && test "$2" = "\\$(id)"', 0, ""),
    ],
)
def test_validated_payloads_end_with_their_code_or_with_that_of_a_refusal(tmp_path, validation, payload, code, said):
    (tmp_path / "run.sh").write_text(f"#!/bin/sh\n{payload}\n")
    if validation:
        (tmp_path / "check.sh").write_text(f"#!/bin/sh\n{validation}\n")
    argv = ["/bin/sh", translate.WRAPPER, "" if validation == "" else "./check.sh", "./run.sh", "a b", "$(id)"]
    ended = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr


# the command


def test_jdl_show_prints_every_form(tmp_path, capsys):
    path = tmp_path / "job.jdl"
    path.write_text('Executable = "a.sh"; Arguments = "$1 $2"; Packages = {"VO_ALICE@ROOT::v6-36"}; Split = "file";')
    assert main(["jdl", "show", str(path), "x", "--arg", "y"]) == 0
    plain = capsys.readouterr()
    assert "program      a.sh x y" in plain.out and "Split is kept" in plain.err
    assert main(["jdl", "show", str(path), "x", "y", "--as", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["arguments"] == ["x", "y"]
    for form, parse in (("submit", submit.parse), ("classad", ads.parse), ("jdl", jdl.parse)):
        assert main(["jdl", "show", str(path), "x", "y", "--as", form]) == 0
        assert parse(capsys.readouterr().out).packages == (PackageSpec("ROOT", "v6-36", "alice"),)


def test_jdl_show_refuses_with_the_place_and_exit_code_of_syntax_errors(tmp_path, capsys):
    path = tmp_path / "job.jdl"
    path.write_text('Executable = "a"\nTTL = 5;')
    assert main(["jdl", "show", str(path)]) == JobSyntaxError.exit_code
    assert "line 2, column 1: expected ;" in capsys.readouterr().err


def test_the_wrapper_of_validated_jobs_is_executable():
    assert os.access(translate.WRAPPER, os.X_OK)
