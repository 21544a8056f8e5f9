"""What alibuild made becomes packages with their closure, and works where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from jobagent import manifest
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Repository
from jobagent.central.packaging import alibuild
from jobagent.central.publish import Edition, Publisher
from jobagent.errors import PublishError
from jobagent.events import Event, Events
from jobagent.job import relocation
from jobagent.job.environment import apply
from jobagent.model import Installed, PackageId, PackageSpec
from jobagent_environment.providers import InitSh, Modulefile
from jobagent_environment.settings import EnvironmentSettings
from tests.conftest import need
from tests.packages import unpack

ARCHITECTURE = "debian12_x86-64"


def _meta(name: str, version: str, package_hash: str, needs: Sequence[str]) -> dict[str, object]:
    """What alibuild writes down of a package."""
    release, _, revision = version.rpartition("-")
    return {
        "alibuild_version": "1.17.48",
        "alidist": {"commit": "73721e6f8ec5d6b32d610ec3e2d2cd63f36883a6"},
        "architecture": ARCHITECTURE,
        "defaults": "release",
        "package": {"name": name, "tag": release, "source": f"https://git.invalid/{name}", "version": release,
                    "revision": revision, "hash": package_hash},
        "dependencies": {"recursive": {"runtime": [
            {"name": n, "version": "v1.0", "revision": "1", "source": None} for n in needs
        ]}},
    }  # fmt: skip


def _init(name: str, version: str) -> str:
    """The script that sets a package's environment."""
    word = name.upper().replace("-", "_")
    root = f'"$WORK_DIR/$ALIBUILD_ARCH_PREFIX"/{name}/{version}'
    init = f': "${{ALIBUILD_ARCH_PREFIX:={ARCHITECTURE}}}"\nexport {word}_ROOT={root}\n'
    return init + f'export PATH="${word}_ROOT/bin${{PATH+:$PATH}}"\n'


class WorkDirectory:
    """alibuild's work directory, laid out as alibuild 1.17 leaves it; archives are made without building."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tars = path / "TARS" / ARCHITECTURE
        self._runtime: dict[str, list[str]] = {}

    def build(
        self,
        name: str,
        version: str,
        files: Mapping[str, str],
        *,
        needs: Sequence[str] = (),
        builds: Sequence[str] = (),
    ) -> None:
        """Make a package; `{PREFIX}`, `{REVISION}` in files are what recipes write there."""
        package_hash = (name.encode().hex() * 8)[:40]
        own = f"{ARCHITECTURE}/{name}/{version}"
        prefix = f"/build/sw/INSTALLROOT/{package_hash}/{own}"
        tree = self.path / "INSTALLROOT" / package_hash
        texts = {
            p: t.replace("{PREFIX}", prefix).replace("{REVISION}", f"@@PKGREVISION@{package_hash}@@")
            for p, t in files.items()
        }
        unrelocated = [p for p, t in texts.items() if prefix in t or "@@PKGREVISION@" in t]
        texts |= {
            ".meta.json": json.dumps(_meta(name, version, package_hash, needs)),
            ".original-unrelocated": "".join(f"{p}\n" for p in unrelocated),
            "relocate-me.sh": "#!/bin/bash -e\nexit 99\n",
            "etc/profile.d/init.sh": _init(name, version),
            **{f"{p}.unrelocated": texts[p] for p in unrelocated},
        }
        for path, text in texts.items():
            target = tree / own / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            if text.startswith("#!"):
                target.chmod(0o755)
        file_name = f"{name}-{version}.{ARCHITECTURE}.tar.gz"
        stored = self.tars / "store" / package_hash[:2] / package_hash / file_name
        stored.parent.mkdir(parents=True)
        with tarfile.open(stored, "w:gz") as archive:
            archive.add(tree, ".")
        shutil.rmtree(tree)
        self._link(self.tars / name, stored)
        self._runtime[file_name] = sorted({file_name, *(f for n in needs for f in self._runtime[self._file(n)])})
        for kind, names in (
            ("dist-runtime", self._runtime[file_name]),
            ("dist-direct", [file_name, *(self._file(n) for n in (*needs, *builds))]),
        ):
            for needed in names:
                self._link(self.tars / kind / name / f"{name}-{version}", next(self.tars.glob(f"store/*/*/{needed}")))

    def _file(self, name: str) -> str:
        return next((self.tars / name).glob("*.tar.gz")).name

    def _link(self, directory: Path, stored: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / stored.name).symlink_to(os.path.relpath(stored, directory))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = WorkDirectory(tmp_path / "sw")
    directory.build("Compiler", "v9-1", {"bin/cc": "x"})
    directory.build(
        "Base-tool", "v1.0-1", {"bin/base-config": "#!/bin/sh\necho base in {PREFIX}\n"}, builds=["Compiler"]
    )
    modulefile = "#%Module1.0\nset version v2.0-{REVISION}\nsetenv TOOL_DATA $::env(BASEDIR)/Tool/$version/share\n"
    directory.build(
        "Tool",
        "v2.0-3",
        {
            "bin/tool-config": "#!/bin/sh\necho tool in {PREFIX}/lib\nbase-config\n",
            "etc/modulefiles/Tool": modulefile,
        },
        needs=["Base-tool"],
        builds=["Compiler"],
    )
    return directory.path


def test_the_closure_is_what_runs_and_not_what_built(work: Path) -> None:
    found = alibuild.closure(work, "Tool/v2.0-3")
    assert [(s.name, s.version) for s in found] == [("Base-tool", "v1.0-1"), ("Tool", "v2.0-3")]
    assert found[1].requires == (PackageSpec("Base-tool", "v1.0-1"),)


@pytest.mark.parametrize("name", ["Absent/v1", "Tool/v9", "Too"])
def test_an_unknown_package_says_where_to_look(work: Path, name: str) -> None:
    with pytest.raises(PublishError, match="dist-runtime"):
        alibuild.closure(work, name)


def publish(work: Path, tmp_path: Path) -> tuple[Repository, list[Event]]:
    keys = KeyStore(tmp_path / "keys", passphrase=lambda name: None)
    repository, _ = Repository.create(tmp_path / "catalogue", keys)
    repository.add_vo("alice", [keys.new("alice-1").key])
    events, seen = Events(), list[Event]()
    events.subscribe(seen.append)
    sources = alibuild.closure(work, "Tool")
    Publisher(repository, "alice", "Linux-x86_64", events, level=1).publish(
        [Edition(s, s.name, s.version) for s in sources]
    )
    return repository, seen


def install(repository: Repository, base: Path) -> dict[str, Installed]:
    """Install everything as a node does, each package in a directory of its own."""
    installed = {}
    for package in repository.packages():
        archive = repository.directory / "archives" / package.archive.sha256 / package.archive.file_name
        staging, final = base / "staging", base / package.key[:8] / "tree"
        entries = unpack(archive, package, staging)
        assert manifest.digest(entries) == package.tree.manifest
        relocation.relocate(staging, final, entries)
        final.parent.mkdir()
        staging.rename(final)
        installed[package.id.name] = Installed(package, final)
    return installed


def environment(installed: Mapping[str, Installed]) -> dict[str, str]:
    order = [installed["Base-tool"], installed["Tool"]]
    providers = (InitSh(EnvironmentSettings()), Modulefile(Events()))
    changes = [c for n, item in enumerate(order) for p in providers for c in p.changes(item, order[:n])]
    return apply(changes, {"PATH": "/usr/bin:/bin"})


def test_published_packages_run_where_they_are_installed(work: Path, tmp_path: Path) -> None:
    repository, _ = publish(work, tmp_path)
    installed = install(repository, tmp_path)
    tool, base = installed["Tool"], installed["Base-tool"]
    assert tool.package.dependencies == (PackageId("alice", "Base-tool", "v1.0-1"),)
    variables = environment(installed)
    assert (variables["TOOL_ROOT"], variables["TOOL_DATA"]) == (str(tool.tree), f"{tool.tree}/share")
    result = subprocess.run(["tool-config"], env=variables, capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout == f"tool in {tool.tree}/lib\nbase in {base.tree}\n"


def test_no_script_of_alibuild_is_left_to_be_run(work: Path, tmp_path: Path) -> None:
    repository, _ = publish(work, tmp_path)
    names = {p.name for p in install(repository, tmp_path)["Tool"].tree.rglob("*")}
    assert names.isdisjoint({"relocate-me.sh", ".original-unrelocated", "tool-config.unrelocated"})


def test_recipes_and_sources_travel_as_provenance(work: Path, tmp_path: Path) -> None:
    repository, _ = publish(work, tmp_path)
    blob = next(p.provenance for p in repository.packages() if p.id.name == "Tool")
    assert blob is not None
    document = json.loads((repository.directory / "objects" / blob.sha256).read_bytes())
    properties = {p["name"]: p["value"] for p in document["metadata"]["properties"]}
    assert properties["alibuild:alidist-commit"] == "73721e6f8ec5d6b32d610ec3e2d2cd63f36883a6"
    assert [(c["name"], c["version"]) for c in document["components"]] == [("Base-tool", "v1.0-1"), ("Tool", "v2.0")]


RECIPES = {
    "defaults-release.sh": "package: defaults-release\nversion: v1\n---\n",
    "base-tool.sh": """\
package: Base-tool
version: v1.0
---
#!/bin/bash -e
mkdir -p $INSTALLROOT/bin $INSTALLROOT/lib
echo 'int answer(void) { return 42; }' > answer.c
gcc -shared -fPIC -o $INSTALLROOT/lib/libanswer.so answer.c
printf '#!/bin/sh\\necho base in %s\\n' $INSTALLROOT > $INSTALLROOT/bin/base-config
chmod +x $INSTALLROOT/bin/base-config
""",
    "tool.sh": """\
package: Tool
version: v2.0
requires:
  - Base-tool
env:
  TOOL_DATA: "$TOOL_ROOT/share"
---
#!/bin/bash -e
mkdir -p $INSTALLROOT/bin $INSTALLROOT/lib
echo 'int answer(void); int main(void) { return answer(); }' > main.c
gcc -o $INSTALLROOT/bin/tool main.c -L$BASE_TOOL_ROOT/lib -lanswer -Wl,-rpath,$INSTALLROOT/lib
printf '#!/bin/sh\\necho tool in %s/lib\\nbase-config\\n' $INSTALLROOT > $INSTALLROOT/bin/tool-config
chmod +x $INSTALLROOT/bin/tool-config
ln $INSTALLROOT/bin/tool-config $INSTALLROOT/lib/tool-config
""",
}


@pytest.mark.slow
def test_what_alibuild_itself_builds_here_runs_where_it_is_installed(tmp_path: Path) -> None:
    program = shutil.which("aliBuild")
    if program is None:
        pytest.skip("aliBuild is not installed: pip install alibuild, in an environment of its own")
    for tool in ("git", "gcc", "rsync"):
        need(tool)
    recipes = tmp_path / "alidist"
    recipes.mkdir()
    for name, text in RECIPES.items():
        (recipes / name).write_text(text)
    settings = tmp_path / ".config/alibuild"
    settings.mkdir(parents=True)
    (settings / "disable-analytics").touch()
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@tests.invalid"]
    for argv in (["git", "init", "-q"], ["git", "add", "."], ["git", *identity, "commit", "-qm", "Recipes"]):
        subprocess.run(argv, cwd=recipes, env=variables, check=True, timeout=60)
    argv = [program, "build", "-w", "sw", "-c", "alidist", "-a", ARCHITECTURE, "--force-unknown-architecture"]
    subprocess.run(
        [*argv, "--defaults", "release", "Tool"], cwd=tmp_path, env=variables, check=True, timeout=170,
        capture_output=True,
    )  # fmt: skip
    repository, _ = publish(tmp_path / "sw", tmp_path)
    installed = install(repository, tmp_path)
    (tmp_path / "sw").rename(tmp_path / "gone")
    variables = environment(installed)
    result = subprocess.run(["tool-config"], env=variables, capture_output=True, text=True, check=True, timeout=30)
    tool, base = installed["Tool"].tree, installed["Base-tool"].tree
    assert result.stdout == f"tool in {tool}/lib\nbase in {base}\n"
    assert variables["TOOL_DATA"] == f"{tool}/share"
    assert subprocess.run(["tool"], env=variables, check=False, timeout=30).returncode == 42
