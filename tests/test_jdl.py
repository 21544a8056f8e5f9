"""AliEn's job description language: what it means, and that nothing else ever gets in."""

from pathlib import Path

import classad2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobagent.condor.language import jdl, lexemes
from jobagent.errors import JobSyntaxError
from jobagent.model import InputFile, PackageSpec

MATERIAL = Path(__file__).resolve().parents[2] / "shared" / "material" / "jdl"
ALIEN_FILES = sorted(p for p in MATERIAL.rglob("*.jdl") if p.parent.name != "dirac")
DIRAC_FILES = sorted((MATERIAL / "dirac").glob("*.jdl"))
needs_material = pytest.mark.skipif(not ALIEN_FILES, reason="the collection of real JDLs is not beside the project")


def parse(text, *arguments, **options):
    return jdl.parse(text, arguments=arguments, **options)


def refusal(text, *arguments):
    with pytest.raises(JobSyntaxError) as caught:
        parse(text, *arguments)
    return caught.value


# real files


@needs_material
@pytest.mark.parametrize("path", ALIEN_FILES, ids=lambda p: p.stem)
def test_every_real_jdl_is_read_with_nothing_lost(path):
    text = path.read_text(encoding="utf-8")
    job = parse(text, *"abcdef", home="/alice/cern.ch/user/j/jdoe")
    assert job.executable
    keys = {line.split("=")[0].strip().lower() for line in text.replace(";", "\n").splitlines() if "=" in line}
    written = {k for k in keys if k.isidentifier()}
    assert {name.lower() for name in job.attributes} == written


@needs_material
@pytest.mark.parametrize("path", ALIEN_FILES, ids=lambda p: p.stem)
def test_htcondor_reads_every_attribute_of_every_real_jdl(path):
    job = parse(path.read_text(encoding="utf-8"), *"abcdef")
    ad = classad2.ClassAd("[" + ";".join(f"{k} = {v}" for k, v in job.attributes.items()) + "]")
    assert {k.lower() for k in ad} == {k.lower() for k in job.attributes}


@needs_material
@pytest.mark.parametrize("path", DIRAC_FILES, ids=lambda p: p.stem)
def test_the_dirac_dialect_is_refused_where_its_first_bare_word_stands(path):
    error = refusal(path.read_text(encoding="utf-8"))
    assert (error.line, error.column) == (4, 16)
    assert "expected a quoted string" in str(error) and "jobGroup" in str(error)


@needs_material
def test_a_production_jdl_becomes_the_job_that_its_author_meant():
    job = parse((MATERIAL / "aliphysics" / "spacePointCalibrationProcVDTime.jdl").read_text(), "r1", "out7")
    assert job.packages == (
        PackageSpec("jemalloc", "v3.6.0", "alice"),
        PackageSpec("AliPhysics", "v5-08-12-01-1", "alice"),
    )
    assert job.arguments == ("r1", "out7")
    assert job.wall_limit_s == 86000
    assert job.disk_bytes == 6000 << 20
    assert job.inputs[0] == InputFile(
        "LF:/alice/cern.ch/user/p/pwg_pp/TPCSPcalibration_20160607/trees_out7.xml", "trees_out7.xml"
    )
    assert job.outputs == ("*.log", "*.list", "*.root")
    assert job.validation_command == "/alice/validation/validation.sh"
    assert job.environment["ALIEN_JDL_USETOFBC"] == "true"
    assert job.environment["ALIEN_JDL_PACKAGES"] == "VO_ALICE@jemalloc::v3.6.0##VO_ALICE@AliPhysics::v5-08-12-01-1"
    assert job.attributes["LegoResubmitZombies"] == '"1"'
    assert any("OutputDir is kept" in w for w in job.warnings)


# syntax


def test_keys_have_no_case():
    assert parse('EXECUTABLE="a"; packages="X::1"').packages == (PackageSpec("X", "1"),)


def test_the_last_of_a_repeated_key_wins():
    assert parse('Executable="a"; executable="b";').executable == "b"
    assert dict(parse('Executable="a"; executable="b";').attributes) == {"executable": '"b"'}


def test_lists_keep_order_and_drop_duplicates():
    job = parse('Packages = {"B::1", "A::1", "B::1"};')
    assert [p.name for p in job.packages] == ["B", "A"]
    assert job.attributes["Packages"] == '{ "B::1", "A::1" }'


def test_a_trailing_comma_and_a_missing_last_semicolon_are_forgiven():
    assert parse('Executable="a";\nOutputFile = {"x", "y",}').outputs == ("x", "y")


@pytest.mark.parametrize(
    "text", ['[Executable="a"]', ' [ Executable="a"; ] ', '# c\n[Executable="a";];', '\ufeffExecutable="a"']
)
def test_brackets_around_the_whole_are_optional(text):
    assert parse(text).executable == "a"


def test_a_hash_is_a_comment_only_at_the_start_of_a_line():
    job = parse('# all of it = ;\n  # "more\nExecutable = "a#b"; // $1\nOutputFile = {\n# "x",\n "y" };')
    assert job.executable == "a#b"
    assert job.outputs == ("y",)
    assert refusal('Executable = "a"; # no').column == 19


def test_semicolons_and_quotes_in_strings_are_text():
    job = parse(r'Executable = "a;b\"c"; Jobtag = {"x;y"};')
    assert job.executable == 'a;b"c'
    assert job.attributes["Jobtag"] == '{ "x;y" }'


def test_expressions_are_evaluated_by_htcondor():
    job = parse('N = 2; CPUCores = N * 4; Packages = { strcat("VO_ALICE@ROOT::v", N) }; TTL = 3600 * 2;')
    assert job.cpus == 8
    assert str(job.packages[0]) == "VO_ALICE@ROOT::v2"
    assert job.wall_limit_s == 7200


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ('Executable = "a"\nArguments = "b";', 2, 1, "expected ; or an operator"),
        ("Executable = ;", 1, 14, "expected a value"),
        ('Executable "a";', 1, 12, "expected = after Executable"),
        ('Executable = "a;\n\nTTL = 5;', 1, 14, 'expected a "'),
        ('Executable = "a;\nTTL = "5";', 2, 8, "goes over several lines"),
        ('OutputFile = { "a", "b";', 1, 24, "expected , or } or an operator"),
        ('OutputFile = { "a" "b" };', 1, 20, "expected , or }"),
        ('OutputFile = { "a", "b"', 1, 14, "expected }"),
        ('Requirements = (other.CE == "x";', 1, 32, "the ( of line 1, column 16 is open"),
        ('Requirements = (other.CE == "x"', 1, 16, "( is not closed"),
        ("Requirements = other. == 1;", 1, 23, "attribute name after the dot"),
        ("Requirements = a ? b ;", 1, 22, "expected : or"),
        ("TTL = 5 hours;", 1, 9, "expected ; or an operator"),
        ("Workdirectorysize = 50MB;", 1, 21, "malformed number"),
        ("Price = 0x10;", 1, 9, "malformed number"),
        ("Price = 99999999999999999999;", 1, 9, "is above"),
        ("Price = 1e999;", 1, 9, "too large"),
        ("JobName = My_job;", 1, 11, "bare word My_job"),
        ("Out = {std.out};", 1, 8, "bare word std.out"),
        ('Executable = "a\x00";', 1, 16, "U+0000"),
        ('A = "x";\nExecutable = "a\x1b";', 2, 16, "U+001B"),
        (r'Executable = "a\000";', 1, 14, "U+0000"),
        ('= "x";', 1, 1, "expected an attribute name"),
        ('[ Executable = "a";', 1, 20, "expected ]"),
        ('[ Executable = "a"; ] x', 1, 23, "expected the end after ]"),
        ('Packages = {"A::1",\n  "no good"};', 1, 12, "no good"),
        ('TTL = "soon";', 1, 7, "not a time"),
        ('Memorysize = {"2 parsecs"};', 1, 14, "not a size"),
        ('CPUCores = "many";', 1, 12, "number of cores"),
        ('OutputFile = "../x";', 1, 14, "working directory"),
        ('InputFile = "LF:/a/../b";', 1, 13, "not the name of a file"),
        ('Arguments = "it\'s";', 1, 13, "no closing quotation"),
        ('Requirements = "other.X == 1";', 1, 16, "expected an expression"),
        ("Packages = Nothing + 1;", 1, 12, "has no constant value"),
        ('JDLVariables = {"A B"};', 1, 16, "not the name of an attribute"),
    ],
)
@pytest.mark.acceptance(29)
def test_a_malformed_jdl_is_refused_with_line_column_and_expectation(text, line, column, expected):
    error = refusal(text)
    assert (error.line, error.column) == (line, column), str(error)
    assert expected in str(error)
    assert "\n" not in str(error)


# arguments


def test_arguments_fill_their_places_everywhere_but_in_comments():
    job = parse(
        '# $9\nExecutable = "$1.sh";\nTTL = $2;\nArguments = "$10 $1 \\$3 $dir $HOME";', *"a234567890", home="/h"
    )
    assert job.executable == "a.sh"
    assert job.wall_limit_s == 2
    assert job.arguments == ("0", "a", "$3", "$dir", "/h")


def test_too_few_arguments_are_an_error_that_says_how_many():
    error = refusal('Executable = "x";\nArguments = "$1 $3";', "a")
    assert (error.line, error.column) == (2, 17)
    assert "needs 3 arguments, 1 given" in str(error)


def test_arguments_that_are_used_nowhere_are_warned_of():
    assert "the last 2 of 2 arguments" in parse('Executable="a"', "x", "y").warnings[0]


@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc", "Zl", "Zp", "Cn", "Co", "Cf", "Zs"])))
@example('"; Packages = "evil::1')
@example("\\")
@example('"};')
@pytest.mark.acceptance(28)
def test_an_argument_never_becomes_anything_but_text(argument):
    job = parse('Executable = "$1"; X = $1; Requirements = other.A == "$1";', argument)
    assert list(job.attributes) == ["Executable", "X", "Requirements"]
    assert classad2.ExprTree(job.attributes["Executable"]).eval() == argument
    assert job.packages == ()


# meaning


def test_scalars_and_lists_of_one_are_the_same():
    assert parse('Packages="A::1"; TTL={"60"}').packages == parse('Packages={"A::1"}').packages
    assert parse('TTL={"60"}').wall_limit_s == parse('TTL="60"').wall_limit_s == parse("TTL=60").wall_limit_s == 60


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5 hours 2 minutes", 18120), ("28000", 28000), ("18 hours", 64800), ("1.5h", 5400), ("2 days, 1 min", 172860)],
)
def test_ttl_is_read_as_people_write_it(text, seconds):
    assert parse(f'TTL = "{text}";').wall_limit_s == seconds


@pytest.mark.parametrize(
    ("text", "mega"), [('"5000MB"', 5000), ("5000", 5000), ('{"1GB"}', 1024), ('"1.5 GB"', 1536), ('"2048 KB"', 2)]
)
def test_sizes_have_units_and_plain_numbers_are_megabytes(text, mega):
    job = parse(f"Workdirectorysize = {text}; Memorysize = {text};")
    assert job.disk_bytes == job.memory_bytes == mega << 20


def test_resident_memory_is_what_a_job_asks_for_where_it_says_both():
    assert parse('VirtualMemorysize = "8GB"; ResidentMemorysize = "2GB";').memory_bytes == 2 << 30
    assert parse('VirtualMemorysize = "8GB";').memory_bytes == 8 << 30


def test_inputs_are_named_by_their_last_part_and_nodownload_stays_out():
    job = parse('InputFile={"LF:/a/x.C","y.txt"}; InputData={"LF:/b/z.root,nodownload","LF:/b/w.root","LF:/c/*"};')
    assert job.inputs == (
        InputFile("LF:/a/x.C", "x.C"),
        InputFile("y.txt", "y.txt"),
        InputFile("LF:/b/w.root", "w.root"),
    )
    assert any("LF:/c/*" in w for w in job.warnings)


def test_inputs_of_one_name_do_not_overwrite_each_other():
    job = parse('InputData={"LF:/a/1/e.root","LF:/a/2/e.root","LF:/a/3/e.root"};')
    assert [i.name for i in job.inputs] == ["e.root", "2/e.root", "3/e.root"]


def test_outputs_lose_archive_and_storage_and_say_so():
    job = parse('Output={"logs.zip:stdout,a.log@disk=1","b.root@CERN::SE","resources"};')
    assert job.outputs == ("stdout", "a.log", "b.root")
    assert job.stdout == "stdout" and job.stderr == ""
    assert len(job.warnings) == 4


def test_jdl_variables_become_environment_with_lists_joined():
    job = parse('JDLVariables={"a","N","Packages","Gone"}; A={"x","y"}; n=3; Packages={"VO_ALICE@R::1","S::2"};')
    assert dict(job.environment) == {
        "ALIEN_JDL_A": "x##y",
        "ALIEN_JDL_N": "3",
        "ALIEN_JDL_PACKAGES": "VO_ALICE@R::1##S::2",
        "ALIEN_PACKAGES": "VO_ALICE@R::1 S::2",
    }
    assert "Gone" in job.warnings[0]


@pytest.mark.parametrize(
    ("text", "wanted"), [("1", True), ('"1"', True), ("true", True), ("0", False), ("false", False)]
)
def test_packages_pre_installed_is_a_switch(text, wanted):
    assert parse(f"PackagesPreInstalled = {text};").is_preinstalled_only is wanted


# hostile text


WORDS = """" "a" "A::1" { } [ ] ( ) ; = , $1 $HOME \\ # // /* */ ? : other. X 1 1e9 - ! && is true undefined member
é "LF:/x,y" 'q' . @ $(x) 99999999999999999999 strcat( "5 hours" "2GB" {"a"} {"a","b@c"} + == \x00 \u2028"""
FRAGMENTS = st.lists(st.sampled_from([*WORDS.split(" "), "\n", " "]), max_size=12).map("".join)
KEYS = st.sampled_from(
    [
        "Executable",
        "Arguments",
        "Packages",
        "Requirements",
        "TTL",
        "JDLVariables",
        "InputFile",
        "InputData",
        "Output",
        "CPUCores",
        "X",
        "9",
        "a-b",
    ]
)
STATEMENTS = st.lists(st.tuples(KEYS, FRAGMENTS).map(lambda pair: f"{pair[0]}={pair[1]};"), max_size=6).map("\n".join)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=200), st.lists(FRAGMENTS, max_size=40).map("".join)), st.lists(st.text(), max_size=2)
)
@example("Packages = {{{}}};", [])
@example('TTL = "1' + "0" * 400 + '";', [])
@example("Packages = a; a = Packages;", [])
def test_any_text_is_read_or_refused_as_a_syntax_error(text, arguments):
    try:
        job = parse(text, *arguments)
    except JobSyntaxError:
        return
    for name, value in job.attributes.items():
        assert "\n" not in value
        classad2.ExprTree(f"{lexemes.attribute_name(name)} =?= ({value})")


@given(
    st.text(
        st.characters(
            exclude_categories=["Cs"], exclude_characters="".join(map(chr, [*range(9), 11, *range(14, 32), 127]))
        )
    )
)
def test_quoted_text_is_the_same_text_for_htcondor(text):
    quoted = lexemes.quote(text)
    assert lexemes.unquote(quoted) == text
    assert classad2.ExprTree(quoted).eval() == text


@pytest.mark.parametrize(
    "text",
    [
        "X = " + "(" * 200_000 + ")" * 200_000,
        "X = " + "{" * 200_000,
        "X = " + "[a=" * 200_000,
        "X = " + "!" * 200_000 + "1",
        "X = 1" + "+1" * 200_000,
        "X = a" + ".a" * 200_000,
        "X = " + "a?" * 200_000,
        "X = {" + '"a",' * 200_000,
        "X=1;" * 1 + "".join(f"a{i}=1;" for i in range(30_000)),
        '"' * 500_001,
        "/*" * 500_000,
        'X = "' + "\\" * 1_000_001,
        "A = " + "x" * 10_000_001,
    ],
    ids=lambda text: text[:8],
)
@pytest.mark.acceptance(28)
def test_a_huge_or_deep_text_is_refused_quickly(text):
    assert "\n" not in str(refusal(text))


def test_filling_places_cannot_blow_up_a_text():
    assert "longer than" in str(refusal('X = "' + "$1" * 1_000_000 + '"', "y" * 1000))


@pytest.mark.acceptance(28)
def test_ten_megabytes_of_valid_text_are_read():
    job = parse('Executable = "a"; Blob = "' + "x" * 9_900_000 + '";')
    assert job.executable == "a"
