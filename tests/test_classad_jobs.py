"""Job ads as job descriptions: both forms, HTCondor's own vectors, bounded evaluation."""

import re
import subprocess
import sys
import time
from pathlib import Path

import classad2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobagent.condor.language import ads, arguments, evaluation, expressions, lexemes
from jobagent.condor.language.statements import Rules, read
from jobagent.errors import JobSyntaxError
from jobagent.model import InputFile, PackageSpec

MATERIAL = Path(__file__).resolve().parents[2] / "shared" / "material" / "classad"
needs_material = pytest.mark.skipif(
    not MATERIAL.is_dir(), reason="HTCondor's ClassAd vectors are not beside the project"
)

LONG_FORM = r"""MyType = "Job"
Cmd = "/home/u/run.sh"
Arguments = "one 'two words' it''s ''"
Environment = "A=1 B='x y'"
Packages = { "VO_ALICE@ROOT::v6-36", "GEANT3" }
TransferInput = "a.txt,torrent://h/x/y.root,dir/"
TransferOutput = "out.root"
Out = "stdout.txt"
Err = "/dev/null"
RequestCpus = 2 * 2
RequestMemory = ifThenElse(MemoryUsage =!= undefined, MemoryUsage, 100)
RequestDisk = TARGET.Disk / 2
AllowedJobDuration = 3600
Iwd = "/home/u"
Windows = "C:\dir\"
Requirements = (TARGET.Arch == "X86_64") && TARGET.Disk >= RequestDisk
"""


def refusal(text):
    with pytest.raises(JobSyntaxError) as caught:
        ads.parse(text)
    return caught.value


def test_a_long_form_ad_is_the_job_that_htcondor_would_run():
    job = ads.parse(LONG_FORM)
    assert job.executable == "/home/u/run.sh"
    assert job.arguments == ("one", "two words", "it's"[:2] + "s", "")
    assert dict(job.environment) == {"A": "1", "B": "x y"}
    assert job.packages == (PackageSpec("ROOT", "v6-36", "alice"), PackageSpec("GEANT3"))
    assert job.inputs == (InputFile("a.txt", "a.txt"), InputFile("torrent://h/x/y.root", "y.root"))
    assert job.outputs == ("out.root",)
    assert (job.stdout, job.stderr) == ("stdout.txt", "")
    assert (job.cpus, job.memory_bytes, job.disk_bytes, job.wall_limit_s) == (4, 100 << 20, 0, 3600)
    assert job.base_directory == Path("/home/u")
    assert job.requirements == '(TARGET.Arch == "X86_64") && TARGET.Disk >= RequestDisk'
    assert list(job.attributes) == [line.split(" = ")[0] for line in LONG_FORM.splitlines()]
    assert any("dir/" in w for w in job.warnings)


def test_strings_of_the_long_form_mean_what_htcondor_reads():
    text = "\n".join([r'A = "C:\dir\"', r'B = "say \"x\" \n"', r'C = "a\\b"', r'D = {"x\y", "z"}', 'E = "é"']) + "\n"
    theirs = classad2.parseOne(text, classad2.ParserType.Old)
    ours = ads.parse(text).attributes
    assert {k: evaluation.evaluate(v, {}) for k, v in ours.items()} == dict(theirs.items())


def test_both_forms_of_an_ad_are_the_same_job():
    theirs = classad2.parseOne(LONG_FORM, classad2.ParserType.Old)
    bracketed = ads.parse(str(theirs))
    assert bracketed.packages == ads.parse(LONG_FORM).packages
    assert bracketed.arguments == ads.parse(LONG_FORM).arguments
    assert set(bracketed.attributes) == set(ads.parse(LONG_FORM).attributes)


@pytest.mark.parametrize(
    "text", ['Packages = "A::1, B"', 'Packages = {"A::1","B"}', '[Packages = {"A::1", strcat("B","")}]']
)
def test_packages_are_a_list_or_a_string(text):
    assert ads.parse(text).packages == (PackageSpec("A", "1"), PackageSpec("B"))


def test_the_old_notations_of_arguments_and_environment_are_read():
    job = ads.parse('Cmd = "x"\nArgs = "a  b\'c"\nEnv = "A=1;B=x y"\n')
    assert job.arguments == ("a", "b'c")
    assert dict(job.environment) == {"A": "1", "B": "x y"}


def test_the_vo_comes_from_the_ad_or_the_proxy():
    assert ads.parse('VirtualOrganisation = "ALICE"\nx509UserProxyVOName = "lhcb"').namespace == "alice"
    assert ads.parse('x509UserProxyVOName = "lhcb"').namespace == "lhcb"
    assert ads.parse("x509UserProxyVOName = undefined").namespace is None


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ('Cmd = "x"\nnonsense\n', 2, 1, "expected Name = expression"),
        ('Cmd = "x"\nA = (1\n', 2, 5, "( is not closed"),
        ('Cmd = "x"\nA = "1\n', 2, 5, "is not closed"),
        ('Cmd = "x"\nEnvironment = "A=\'x"\n', 2, 15, "a quote is not closed"),
        ('Cmd = "x"\nA = 1 2\n', 2, 7, "an operator"),
        ('Cmd = "x"\n\nCmd = "y"\n', 3, 1, "second ad"),
        ('Cmd = "x"\nPackages = {"a b"}\n', 2, 12, "a b"),
        ('Cmd = "x"\nPackages = Other.Packages\n', 2, 12, "no constant value"),
        ('Cmd = "x"\nArguments = "it\'s"\n', 2, 13, "single quote"),
        ('Cmd = "x\x00"\n', 1, 9, "U+0000"),
        ('[ Cmd = "x" ] [ Cmd = "y" ]', 1, 15, "expected the end"),
        ('[ Cmd = x::y ]', 1, 10, "expected"),
    ],
)  # fmt: skip
@pytest.mark.acceptance(29)
def test_a_malformed_ad_is_refused_with_line_and_column(text, line, column, expected):
    error = refusal(text)
    assert (error.line, error.column) == (line, column), str(error)
    assert expected in str(error)


def test_an_ad_takes_no_arguments():
    with pytest.raises(JobSyntaxError, match="takes no arguments"):
        ads.parse('Cmd = "x"', arguments=["1"])


# HTCondor's own vectors


@needs_material
@pytest.mark.parametrize("name", ["test.ad", "test.old.ad", "job_startd_multimatch.ad"])
def test_htcondors_own_ads_are_read_attribute_by_attribute(name):
    text = (MATERIAL / name).read_text()
    theirs = classad2.parseOne(text)
    ours = ads.parse(text).attributes
    assert {k.lower() for k in ours} == {k.lower() for k in theirs}
    for key, value in ours.items():
        assert classad2.ExprTree(value) == theirs.lookup(key), key


def _comparisons():
    """The lines `same A, B` of HTCondor's tests that need no variable."""
    lines = (MATERIAL / "functional_tests.txt").read_text().splitlines()
    return [line.removeprefix("same ") for line in lines if line.startswith("same ") and "$" not in line]


@needs_material
def test_htcondors_functional_vectors_evaluate_as_they_say():
    agreed = 0
    for line in _comparisons():
        source = lexemes.Source(line)
        try:
            left = expressions.scan(source, 0, until=",")
            right = expressions.scan(source, left.end + 1, until="")
        except JobSyntaxError:
            assert line.endswith('")'), line  # their lines with a bracket too many
            continue
        if left.text.startswith(("string(real", "real(", "-")) or '":00' in line:
            continue  # numbers that are no constants of Python, and a date that only old versions read
        same = classad2.ExprTree(f"({left.text}) =?= ({right.text})").eval()
        agreed += same is True
    assert agreed > 60, agreed


@needs_material
def test_htcondors_records_are_read_whole():
    text = (MATERIAL / "functional_tests.txt").read_text()
    records = re.findall(r"^eval \w+ = (\[\n.*?^ +\])$", text, re.MULTILINE | re.DOTALL)
    assert len(records) >= 3
    for record in records:
        found = expressions.scan(lexemes.Source(record), 0, until="")
        assert classad2.ExprTree(found.text) == classad2.ExprTree(record)


@needs_material
def test_htcondors_lexer_vectors_are_words_of_ours_too():
    count = 0
    for line in (MATERIAL / "tests.txt").read_text().splitlines():
        if not line.startswith("test-lexer-one-token"):
            continue
        _, text, kind = line.split(None, 1)[0], *line.split(None, 1)[1].rsplit(None, 1)
        if kind == "LEX_TOKEN_ERROR":
            continue
        text = text.strip()
        words = list(lexemes.Source(text).lexemes(0))
        assert len(words) == 1, line
        wanted = {"LEX_INTEGER_VALUE": "number", "LEX_REAL_VALUE": "number", "LEX_STRING_VALUE": "string"}.get(kind)
        assert wanted in {None, words[0].kind}, line
        count += 1
    assert count > 30


# evaluation


def test_an_ad_of_constants_needs_no_library_of_htcondor():
    program = (
        "import sys; from jobagent.condor.language import ads;"
        "ads.parse('Packages = { \"VO_ALICE@ROOT::v6-36\" }\\nPackagesPreInstalled = true\\n');"
        "sys.exit('classad2' in sys.modules or 'htcondor2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "Packages = a0\n" + "".join(f"a{i} = strcat(a{i + 1}, a{i + 1})\n" for i in range(40)) + 'a40 = "x"\n',
        "Packages = a0\n"
        + "".join(f"a{i} = strcat({','.join([f'a{i + 1}'] * 99)})\n" for i in range(6))
        + 'a6 = "x"\n',
        "Packages = a\na = b\nb = a\n",
        "Packages = Packages\n",
        'Packages = eval("Packages")\n',
        "Packages = a0\n" + "".join(f"a{i} = a{i + 1}\n" for i in range(5000)) + 'a5000 = "x"\n',
        "[Packages = [" + "".join(f"a{i} = strcat(a{i + 1},a{i + 1});" for i in range(40)) + 'a40 = "x"].a0]',
    ],
    ids=["doubling", "fan-out", "mutual", "self", "eval", "chain", "record"],
)
def test_an_expression_cannot_keep_the_reader_busy(text):
    start = time.monotonic()
    assert "no constant value" in str(refusal(text))
    assert time.monotonic() - start < 2


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=100),
        st.lists(
            st.sampled_from(
                [
                    "Packages = ",
                    "Cmd = ",
                    "[",
                    "]",
                    '"x"',
                    '"',
                    "{",
                    "}",
                    ",",
                    "\n",
                    ";",
                    "a",
                    "1",
                    "\\",
                    "Arguments = ",
                    "'",
                    "&&",
                    "=",
                    " ",
                ]
            ),
            max_size=20,
        ).map("".join),
    )
)
@example("Packages = {{}}")
@example("Environment = 3\nEnv={}\nRequestCpus=-1\nIn={1,2}")
def test_any_text_is_an_ad_or_a_syntax_error(text):
    try:
        job = ads.parse(text)
    except JobSyntaxError:
        return
    assert job.dialect == "classad"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]))))
def test_arguments_survive_htcondors_notation(words):
    assert arguments.split(arguments.join(words)) == tuple(words)


@pytest.mark.acceptance(28)
def test_a_ten_megabyte_ad_is_read_or_refused_in_seconds():
    start = time.monotonic()
    assert ads.parse('Packages = {"A::1"}\nBlob = "' + "x" * 9_000_000 + '"\n').packages
    assert "at most" in str(refusal('Blob = "' + "x" * 10_000_000 + '"\n'))
    assert time.monotonic() - start < 5


@pytest.mark.acceptance(28)
def test_hostile_names_stop_at_the_grammar():
    for name in ["../../etc", "a;rm", "$(x)", "a b", "-x", "a\\nb", "a|b", "x" * 300, "A::", "@A", "A::1::2", "`id`"]:
        with pytest.raises(JobSyntaxError):
            ads.parse(f'[ Packages = {{ "{name}" }} ]')


def test_names_that_are_no_identifiers_are_quoted():
    statements = read(lexemes.Source("[ 'my x' = 1; y = 'my x' + 1 ]"), Rules())
    assert set(statements) == {"my x", "y"}
    assert evaluation.evaluate("y", {s.name: s.text for s in statements.values()}) == 2
