"""Packages' own set-up files do what they say, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent.contracts import EnvironmentProvider
from jobagent.events import Event, Events
from jobagent.job.environment import apply, changes_of
from jobagent.job.kit import Kit
from jobagent.model import EnvironmentAction, EnvironmentChange, Installed
from jobagent.testing.packages import make_package
from jobagent_environment import initsh, modulefile, scripts
from jobagent_environment.places import NotUnderstood, Place
from jobagent_environment.providers import AlienEnvironment, InitSh, Modulefile
from jobagent_environment.settings import EnvironmentSettings
from tests.conftest import need

ARCHITECTURE = "slc9_x86-64"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory for packages outside of what a sandbox hides."""
    return tmp_path


def install(home: Path, name: str, files: dict[str, str], version: str = "v1.0-1") -> Installed:
    tree = home / name
    short, _, revision = version.rpartition("-")
    meta = {"architecture": ARCHITECTURE, "package": {"name": name, "version": short, "revision": revision}}
    for path, text in {".meta.json": json.dumps(meta), **files}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
        if text.startswith("#!/"):
            (tree / path).chmod(0o755)
    return Installed(make_package(f"VO_ALICE@{name}::{version}"), tree)


def effect(changes: Sequence[EnvironmentChange], base: dict[str, str] | None = None) -> dict[str, str]:
    return apply(changes, base or {})


def init_sh(name: str, version: str, *lines: str, needs: Sequence[tuple[str, str]] = ()) -> str:
    """An init.sh as alibuild 1.17 writes it."""
    word = name.upper().replace("-", "_")
    short, _, revision = version.rpartition("-")
    return "\n".join(
        [
            f': "${{ALIBUILD_ARCH_PREFIX:={ARCHITECTURE}}}"',
            *(
                f'[ -n "${{{n.upper().replace("-", "_")}_REVISION}}" ] || '
                f'. "$WORK_DIR/$ALIBUILD_ARCH_PREFIX"/{n}/{v}/etc/profile.d/init.sh'
                for n, v in needs
            ),
            f'export {word}_ROOT="$WORK_DIR/$ALIBUILD_ARCH_PREFIX"/{name}/{version}',
            f'export RECC_PREFIX_MAP="${word}_ROOT=/recc/{word}_ROOT:$RECC_PREFIX_MAP"',
            f"export {word}_VERSION={short}",
            f"export {word}_REVISION={revision}",
            f"export {word}_HASH=0604f2ebfd6cc311d4ceebfa880f88052070dcbe",
            *lines,
            f'export PATH="${word}_ROOT/bin${{PATH+:$PATH}}"',
            f'export LD_LIBRARY_PATH="${word}_ROOT/lib${{LD_LIBRARY_PATH+:$LD_LIBRARY_PATH}}"',
        ]
    )


TOOL_LINES = (
    'export TOOL_DATA="$TOOL_ROOT/share:$BASE_TOOL_ROOT/share"',
    'export ROOT_INCLUDE_PATH="$ROOT_INCLUDE_PATH:$TOOL_ROOT/include"',
    'export PYTHONPATH="$TOOL_ROOT/python:$TOOL_ROOT/lib${PYTHONPATH+:$PYTHONPATH}"',
)


@pytest.fixture
def base_tool(home: Path) -> Installed:
    return install(home, "Base-tool", {initsh.FILE: init_sh("Base-tool", "v1.0-1")})


def tool(home: Path, *more: str) -> Installed:
    text = init_sh(
        "Tool", "v2.0-3", *TOOL_LINES, *more, needs=[("Base-tool", "v1.0-1"), ("defaults-release", "v1-1")]
    )
    return install(home, "Tool", {initsh.FILE: text}, "v2.0-3")


def check_tool(made: dict[str, str], home: Path) -> None:
    assert made["TOOL_ROOT"] == f"{home}/Tool"
    assert (made["TOOL_VERSION"], made["TOOL_REVISION"]) == ("v2.0", "3")
    assert made["TOOL_DATA"] == f"{home}/Tool/share:{home}/Base-tool/share"
    assert made["PATH"] == f"{home}/Tool/bin:/bin"
    assert made["LD_LIBRARY_PATH"] == f"{home}/Tool/lib"
    assert made["PYTHONPATH"] == f"{home}/Tool/python:{home}/Tool/lib:/before"
    assert made["ROOT_INCLUDE_PATH"] == f"/before:{home}/Tool/include"


BEFORE = {"PATH": "/bin", "PYTHONPATH": "/before", "ROOT_INCLUDE_PATH": "/before"}


def test_init_sh_of_alibuild_is_read(home: Path, base_tool: Installed) -> None:
    changes = InitSh(EnvironmentSettings()).changes(tool(home), [base_tool])
    check_tool(effect(changes, BEFORE), home)
    assert not any(change.name.startswith(("RECC", "BASE_TOOL")) for change in changes)


def test_init_sh_with_more_than_alibuild_writes_is_run_to_the_same_end(home: Path, base_tool: Installed) -> None:
    need("bwrap")
    installed = tool(home, "for word in one two; do export TOOL_$word=$(echo $word | tr a-z A-Z); done")
    made = effect(InitSh(EnvironmentSettings()).changes(installed, [base_tool]), BEFORE)
    check_tool(made, home)
    assert (made["TOOL_one"], made["TOOL_two"]) == ("ONE", "TWO")


def test_reading_runs_nothing(home: Path, base_tool: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripts, "environment_after", lambda *a, **k: pytest.fail("something was run"))
    assert InitSh(EnvironmentSettings()).changes(tool(home), [base_tool])


OWN = Place("Tool", "v2.0-3", ARCHITECTURE, Path("/trees/tool"))


@pytest.mark.parametrize(
    "line",
    [
        "export X=$(id)",
        "export X=`id`",
        'export X="$(id)"',
        'export X="a\\"b"',
        "export X=a; id",
        "export X=a && id",
        "export X=a | id",
        "export X=~/a*",
        "export X='unclosed",
        'export X="unclosed',
        'export X="${Y:?message}"',
        'export X="${Y#prefix}"',
        'export X="${!Y}"',
        'export X="$1"',
        'export X="$X:$X"',
        'export X="lib$X"',
        'export X="$PATH"',
        'export X="$WORK_DIR"',
        'export X="$WORK_DIR/arch/Other/v1/lib"',
        "if true; then export X=1; fi",
        "source /etc/profile",
        "id",
        "export X=\x01/a/Tool/v2.0-3",
    ],
)
def test_what_is_no_plain_assignment_is_not_understood(line: str) -> None:
    with pytest.raises(NotUnderstood):
        initsh.changes(line, OWN, [])


@given(st.text(max_size=200))
def test_arbitrary_scripts_are_understood_or_refused(text: str) -> None:
    for read in (initsh.changes, modulefile.changes):
        try:
            changes = read(text, OWN, [])
        except NotUnderstood:
            continue
        assert all(c.name.isidentifier() and "\x01" not in c.value for c in changes)


MODULEFILE = """\
#%Module1.0
proc ModulesHelp { } {
  global version
  puts stderr "ALICE Modulefile for Tool v2.0-3 { }"
}
set version v2.0-3
module-whatis "ALICE Modulefile for Tool"
# Dependencies
module load BASE/1.0 Base-tool/v1.0-1
# Our environment
set osname [uname sysname]
set TOOL_ROOT $::env(BASEDIR)/Tool/$version
setenv TOOL_DATA "${TOOL_ROOT}/share $osname"
setenv TOOL_BASE $::env(BASE_TOOL_ROOT)/share
setenv TOOL_PLAIN {no $expansion}
prepend-path PATH $TOOL_ROOT/bin
prepend-path PATH $::env(BASEDIR)/Base-tool/v1.0-1/bin
append-path ROOT_INCLUDE_PATH $TOOL_ROOT/include
"""


def test_modulefiles_are_read(home: Path, base_tool: Installed) -> None:
    installed = install(home, "Tool", {"etc/modulefiles/Tool": MODULEFILE}, "v2.0-3")
    made = effect(Modulefile(Events()).changes(installed, [base_tool]), BEFORE)
    assert made == {
        "PATH": f"{home}/Base-tool/bin:{home}/Tool/bin:/bin",
        "PYTHONPATH": "/before",
        "ROOT_INCLUDE_PATH": f"/before:{home}/Tool/include",
        "TOOL_DATA": f"{home}/Tool/share Linux",
        "TOOL_BASE": f"{home}/Base-tool/share",
        "TOOL_PLAIN": "no $expansion",
    }


@pytest.mark.parametrize(
    "line",
    [
        "if { 1 } { setenv X 1 }",
        "setenv X [exec id]",
        "setenv X $undefined",
        "setenv X $::env(HOME)",
        "set X",
        "system id",
        "eval setenv X 1",
        "prepend-path --delim ; X a",
        "setenv X $::env(BASEDIR)/Other/v1",
    ],
)
def test_half_an_environment_of_a_modulefile_is_worse_than_none(home: Path, line: str) -> None:
    installed = install(home, "Tool", {"etc/modulefiles/Tool": f"setenv FIRST 1\n{line}\n"})
    said: list[Event] = []
    events = Events()
    events.subscribe(said.append)
    assert list(Modulefile(events).changes(installed, [])) == []
    assert "modulefile is left out" in str(said[0].fields["message"])


ALIEN = """\
#!/bin/sh
root=$1; shift
export TOOL_HOME=$root PATH=$root/bin:$PATH LD_LIBRARY_PATH=$root/lib:$LD_LIBRARY_PATH NEW_PATH=$root/new
exec "$@"
"""


def test_alien_environment_is_called_with_its_directory_after_those_of_dependencies(home: Path) -> None:
    need("bwrap")
    base = install(home, "Base", {".alienEnvironment": ALIEN.replace("TOOL_HOME", "BASE_HOME")})
    installed = install(home, "Tool", {".alienEnvironment": ALIEN.replace("export ", "export SAW=$BASE_HOME ", 1)})
    provider = AlienEnvironment(EnvironmentSettings())
    first = provider.changes(base, [])
    made = effect([*first, *provider.changes(installed, [base])], {"PATH": "/bin"})
    assert made == {
        "BASE_HOME": f"{home}/Base",
        "TOOL_HOME": f"{home}/Tool",
        "SAW": f"{home}/Base",
        "PATH": f"{home}/Tool/bin:{home}/Base/bin:/bin",
        "LD_LIBRARY_PATH": f"{home}/Tool/lib:{home}/Base/lib",
        "NEW_PATH": f"{home}/Tool/new",
    }


@pytest.mark.acceptance(35)
def test_a_package_cannot_inject_what_its_vo_signed_or_its_script_says(home: Path) -> None:
    lines = ("export LD_PRELOAD=evil.so", "export BASH_ENV=evil.sh", "export HOME=/evil", "export GOOD=1")
    installed = install(home, "Tool", {initsh.FILE: init_sh("Tool", "v2.0-3", *lines)}, "v2.0-3")
    signed = [EnvironmentChange(EnvironmentAction.SET, n, "evil") for n in ("PYTHONSTARTUP", "LD_AUDIT", "IFS")]
    package = dataclasses.replace(installed.package, environment=tuple(signed))
    said: list[Event] = []
    events = Events()
    events.subscribe(said.append)
    kit = SimpleNamespace(environments=[InitSh(EnvironmentSettings())], events=events)
    changes = changes_of([Installed(package, installed.tree)], cast(Kit, kit))
    assert effect(changes)["GOOD"] == "1"
    refused = {"LD_PRELOAD", "BASH_ENV", "HOME", "PYTHONSTARTUP", "LD_AUDIT", "IFS"}
    assert refused.isdisjoint(change.name for change in changes)
    assert len(said) == len(refused)


def test_a_package_without_set_up_files_has_nothing_to_say(home: Path) -> None:
    installed = install(home, "Tool", {"bin/tool": ""})
    providers: list[EnvironmentProvider] = [
        InitSh(EnvironmentSettings()), Modulefile(Events()), AlienEnvironment(EnvironmentSettings())
    ]  # fmt: skip
    assert [list(p.changes(installed, [])) for p in providers] == [[], [], []]


REACHES = {
    "write outside": "echo owned > {victim}",
    "write into its own tree": 'echo owned > "$root/victim"',
    "see other processes": "ls -d /proc/{pid}",
    "use the network": "(exec 3<>/dev/tcp/127.0.0.1/{port})",
}


@pytest.mark.acceptance(22)
@pytest.mark.parametrize("confined", [True, False])
@pytest.mark.parametrize("what", REACHES)
def test_a_script_cannot_reach_beyond_its_sandbox(
    home: Path, what: str, confined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the sandbox each of them succeeds: the test would notice if the sandbox were none."""
    need("bwrap")
    if not confined:
        monkeypatch.setattr(shutil, "which", lambda *a, **k: None)
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory(dir="/var/tmp") as elsewhere:
        victim = Path(elsewhere) / "victim"  # not below /tmp, of which the sandbox has its own
        victim.write_text("precious")
        line = REACHES[what].format(victim=victim, pid=os.getppid(), port=server.getsockname()[1])
        script = f'#!/bin/bash\nroot=$1; shift\nif {line} >/dev/null 2>&1; then export REACHED=1; fi\nexec "$@"\n'
        installed = install(home, "Tool", {".alienEnvironment": script, "victim": "precious"})
        changes = AlienEnvironment(EnvironmentSettings(unconfined_scripts=True)).changes(installed, [])
        assert (victim.read_text() == "precious") == (confined or what != "write outside")
    assert changes == ([] if confined else [EnvironmentChange(EnvironmentAction.SET, "REACHED", "1")])


@pytest.mark.acceptance(30)
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("#!/bin/sh\nexit 3\n", "exit code 3"),
        ("#!/bin/sh\nsleep 1000 & sleep 1000\n", "took more than 1 s"),
        ("#!/bin/sh\ntrap '' TERM; while :; do :; done\n", "took more than 1 s"),
        ("#!/bin/sh\nyes\n", "wrote more than"),
    ],
)
def test_a_script_that_fails_hangs_or_floods_is_an_error(home: Path, script: str, said: str) -> None:
    need("bwrap")
    installed = install(home, "Tool", {".alienEnvironment": script})
    with pytest.raises(scripts.ScriptFailed, match=said):
        AlienEnvironment(EnvironmentSettings(script_timeout_s=1.0)).changes(installed, [])


def test_without_a_sandbox_nothing_is_run_unless_the_site_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = install(home, "Tool", {".alienEnvironment": ALIEN})
    monkeypatch.setattr(shutil, "which", lambda *a, **k: None)
    with pytest.raises(scripts.ScriptFailed, match="install bubblewrap"):
        AlienEnvironment(EnvironmentSettings()).changes(installed, [])
    settings = dataclasses.replace(EnvironmentSettings(), unconfined_scripts=True)
    made = effect(AlienEnvironment(settings).changes(installed, []))
    assert made["TOOL_HOME"] == f"{home}/Tool"


def test_a_link_for_a_set_up_file_is_not_followed(home: Path) -> None:
    installed = install(home, "Tool", {})
    (installed.tree / "etc/profile.d").mkdir(parents=True)
    (installed.tree / initsh.FILE).symlink_to("/etc/profile")
    (installed.tree / ".alienEnvironment").symlink_to("/bin/true")
    assert not InitSh(EnvironmentSettings()).changes(installed, [])
    assert not AlienEnvironment(EnvironmentSettings()).changes(installed, [])
