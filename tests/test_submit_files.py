"""HTCondor submit files as job descriptions."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import htcondor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobagent.condor.language import submit
from jobagent.errors import JobSyntaxError
from jobagent.model import InputFile, PackageSpec

SUBMIT_FILE = r"""
# histograms
executable   = run.sh
arguments    = "one 'two words' ""q"" $(Process) it''s"
environment  = "A=1 B='x y'"
version      = v6-36
MY.Packages  = { "VO_ALICE@ROOT::$(version)", \
                 "VO_ALICE@GEANT3" }
+Jobtag      = "comment:histograms"
request_cpus = 2
request_memory = 1.5 GB
request_disk = 500
allowed_job_duration = 2 * 3600
transfer_input_files = a.txt, torrent://h/p/x.root
transfer_output_files = out.root
output = out.$(Process)
error = err
log = job.log
requirements = TARGET.JobAgentReady =?= true && \
               TARGET.Arch == "X86_64"
if defined nothing
  +Never = 1
else
  +Always = 1
endif
queue 50
"""


def refusal(text, *arguments):
    with pytest.raises(JobSyntaxError) as caught:
        submit.parse(text, arguments=arguments)
    return caught.value


def test_a_submit_file_is_the_job_that_condor_submit_would_queue_first():
    job = submit.parse(SUBMIT_FILE, base_directory=Path("/home/u"))
    assert job.dialect == "submit"
    assert job.executable == "run.sh"
    assert job.arguments == ("one", "two words", '"q"', "0", "it's"[:2] + "s")
    assert dict(job.environment) == {"A": "1", "B": "x y"}
    assert job.packages == (PackageSpec("ROOT", "v6-36", "alice"), PackageSpec("GEANT3", None, "alice"))
    assert (job.cpus, job.memory_bytes, job.disk_bytes, job.wall_limit_s) == (2, 1536 << 20, 500 << 10, 7200)
    assert job.inputs == (InputFile("a.txt", "a.txt"), InputFile("torrent://h/p/x.root", "x.root"))
    assert job.outputs == ("out.root",)
    assert (job.stdout, job.stderr) == ("out.0", "err")
    assert job.requirements == 'TARGET.JobAgentReady =?= true && TARGET.Arch == "X86_64"'
    assert any("queue 50" in w for w in job.warnings)


def test_no_command_is_lost():
    attributes = submit.parse(SUBMIT_FILE).attributes
    assert attributes["log"] == '"job.log"'
    assert attributes["MY.Jobtag"] == '"comment:histograms"'
    assert attributes["MY.Packages"] == '{ "VO_ALICE@ROOT::$(version)", "VO_ALICE@GEANT3" }'
    assert "MY.Always" in attributes and "MY.Never" not in attributes
    assert list(attributes)[-1] == "queue" and attributes["queue"] == '"50"'


@pytest.mark.parametrize(
    "line",
    [
        'MY.Packages = { "VO_ALICE@ROOT::v6-36", "VO_ALICE@GEANT3::v4-2" }',
        'MY.Packages = "VO_ALICE@ROOT::v6-36, VO_ALICE@GEANT3::v4-2"',
        '+Packages = "VO_ALICE@ROOT::v6-36,VO_ALICE@GEANT3::v4-2"',
        'my.packages = {"VO_ALICE@ROOT::v6-36", strcat("VO_ALICE@", "GEANT3::v4-2")}',
        'MY.Packages @=end\n{ "VO_ALICE@ROOT::v6-36",\n  "VO_ALICE@GEANT3::v4-2" }\n@end',
    ],
)
def test_packages_are_a_list_or_a_string(line):
    job = submit.parse(f"executable = a\n{line}\nqueue\n")
    assert [str(p) for p in job.packages] == ["VO_ALICE@ROOT::v6-36", "VO_ALICE@GEANT3::v4-2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("\"a 'b c' d\"", ("a", "b c", "d")),
        ("a b", ("a", "b")),
        (r"a \"b\" c", ("a", '"b"', "c")),
        ('"say ""hi"" it\'\'s"', ("say", '"hi"', "it's"[:2] + "s")),
        ("\"'it''s'\"", ("it's",)),
    ],
)
def test_both_notations_of_arguments_are_read(arguments, words):
    assert submit.parse(f"executable = a\narguments = {arguments}\nqueue\n").arguments == words


@pytest.mark.parametrize(
    ("environment", "variables"),
    [("\"A=1 B='x y'\"", {"A": "1", "B": "x y"}), ("A=1;B=x y", {"A": "1", "B": "x y"}), ('"A=""q"""', {"A": '"q"'})],
)
def test_both_notations_of_the_environment_are_read(environment, variables):
    assert dict(submit.parse(f"executable = a\nenvironment = {environment}\nqueue\n").environment) == variables


def test_macros_come_from_the_file_and_the_command_line():
    job = submit.parse("executable = $(program:sh)\narguments = $(n) $(Cluster)\nqueue", arguments=["n=7"])
    assert (job.executable, job.arguments) == ("sh", ("7", "1"))
    assert "name=value" in str(refusal("queue", "seven"))
    assert "name=value" in str(refusal("queue", "a=1\nexecutable=evil"))


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        ("queue", ("..",)),
        ("queue 3", ("..",)),
        ("queue x in (a, b c)", ("a..",)),
        ("queue 2 x in a b", ("a..",)),
        ("queue x,y from (\n 1, 2 3\n 4 5\n)", ("1.2", "3.")),
        ("queue x,y,Item from items.txt", ("first.second.third",)),
        ("queue Item matching *.root", ("..one.root",)),
        ("queue in [1:] (a b)", ("..a",)),
    ],
)
def test_macros_of_the_queue_statement_have_the_first_item(queue, words, tmp_path):
    (tmp_path / "items.txt").write_text("# no\n\nfirst, second third\n")
    (tmp_path / "one.root").touch()
    (tmp_path / "two.root").touch()
    job = submit.parse(f"executable = a\narguments = $(x).$(y).$(Item)\n{queue}\n", base_directory=tmp_path)
    assert job.arguments == words


def test_the_initial_directory_is_where_inputs_are_but_not_the_program():
    job = submit.parse(
        "executable = a.sh\ninitialdir = run1\ntransfer_input_files = x\nqueue", base_directory=Path("/s")
    )
    assert job.executable == "/s/a.sh"
    assert job.base_directory == Path("/s/run1")


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("executable = a\nnonsense\nqueue", 2, "expected name = value"),
        ("executable = a\nqueue\narguments = b\n", 3, "behind queue"),
        ("executable = a\nqueue 2\nqueue 3\n", 3, "second queue"),
        ("executable = a\ninclude command : rm -rf /\nqueue", 2, "refused"),
        ("executable = a\ninclude : /etc/passwd\nqueue", 2, "refused"),
        ("use feature : x\n", 1, "refused"),
        ("a = $(b)\n\nb = $(c)\nc = x$(a)\nexecutable = $(a)\nqueue", 1, "a → b → c → a"),
        ("a = $INT(a)\nexecutable = $(a)\nqueue", 1, "a → a"),
        ("y = $(DOLLAR)(x)\nx = $F(y)\nexecutable = $(x)", 2, "$(DOLLAR)"),
        ("d = $(DOLLAR)\ny = $(d)(x)\nx = $F(y)\nexecutable = $(x)", 3, "$(DOLLAR)"),
        ("a = x\n" + "a = $(a)$(a)\n" * 40 + "executable = $(a)", 22, "grows to more than"),
        ("a0 = x\n" + "".join(f"a{i} = $(a{i - 1})$(a{i - 1})\n" for i in range(1, 40)), 21, "grows to more than"),
        ("a = 1\nMY.Packages = {\nqueue", 2, "not closed"),
        ('executable = a\n\nMY.Packages = { "no good" }\nqueue', 3, "no good"),
        ('executable = a\n+Packages = {"A::1"} {"B"}\nqueue', 2, "expected"),
        ("executable = a\nrequirements = (x\nqueue", 2, "not closed"),
        ("executable = a\nrequest_cpus = many cores\nqueue", 2, "expected"),
        ('executable = a\narguments = "a "b" c"\nqueue', 2, "not doubled"),
        ('executable = a\narguments = "it\'s"\nqueue', 2, "single quote"),
        ("executable = a\x00b\nqueue", 1, "U+0000"),
        ("x @=end\nabc\nqueue", 1, "expected @end"),
        ("executable = a\nqueue x from (\na\n", 2, "expected )"),
        ("executable = a\n+Packages = VO_ALICE@ROOT::v1\nqueue", 2, "unexpected character '@'"),
    ],
)
@pytest.mark.acceptance(29)
def test_a_malformed_submit_file_is_refused_with_its_line(text, line, expected):
    error = refusal(text)
    assert error.line == line, str(error)
    assert expected in str(error)


@pytest.mark.acceptance(28)
def test_reading_a_submit_file_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    for text in (f"include command : touch {mark}\nqueue", f"executable=a\nqueue x from touch {mark} |"):
        refusal(text)
    assert not mark.exists()


def test_what_htcondor_would_not_do_is_warned_of():
    job = submit.parse("executable = a\npackages = {}\nuniverse = grid\ngetenv = true\ninput = data\n")
    text = "\n".join(job.warnings)
    for word in ("MY.Packages", "universe grid", "getenv", "In is kept", "no queue"):
        assert word in text


def test_importing_the_dialects_imports_no_foreign_library():
    program = (
        "import sys, jobagent.condor.language.dialects;sys.exit(bool({'classad2', 'htcondor2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 0


LINES = """executable = a
arguments = $(x) $(y:1)
x = $(y)
y = $(x)z
x = $(x) 1
+Packages = {"A::1"}
MY.P = $(x)
if defined x
else
endif
if $(y)
queue
queue 3
queue x in (a b)
queue x from (
)
# c
\\
x = \\
  b
@=
a @=b
@b
include : x
environment = A=$(x);B=$ENV(HOME)
request_memory = $INT(x)
error : no
arguments = "a 'b"
x = $F(y)
x = $CHOICE(1,a,b)
=
requirements = $(x) &&
y = $$(Foo) $(DOLLAR)(x)
"""
TEXTS = st.lists(st.sampled_from(LINES.splitlines()), max_size=10).map("\n".join)


@settings(max_examples=300, deadline=None)
@given(st.one_of(TEXTS, st.text(max_size=60)))
@example("x = $(y)\ny = $(x)z\nexecutable = $(x)\nqueue")
@example("if true\nqueue")
def test_any_text_is_read_or_refused_as_a_syntax_error(text):
    start = time.monotonic()
    with contextlib.suppress(JobSyntaxError):
        submit.parse(text, base_directory=Path("/nowhere"))
    assert time.monotonic() - start < 2


def test_macros_are_expanded_as_htcondor_expands_them():
    text = "a = 1\na = $(a)2\nb = $(a)-$(c:d)-$(DOLLAR)(a)-$INT(a)\nexecutable = $(b)\nqueue\n"
    assert submit.parse(text).executable == htcondor2.Submit(text).expand("executable")
