"""Container jobs: HTCondor's starter runs a real Apptainer, and the payload inside finds its packages."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from condor_site import Site, wanting

from jobagent.errors import JobAgentError
from jobagent.testing import accounts, apptainer, equipped
from jobagent.testing.apptainer import Apptainer
from jobagent.testing.interpreter import Interpreter

pytestmark = pytest.mark.condor


@pytest.fixture(scope="module")
def runtime(open_directory: Path) -> Apptainer:
    """A container runtime; skip where none can be had, except in CI."""
    try:
        return apptainer.install(open_directory / "apptainer")
    except JobAgentError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no container runtime here: {error}")


@pytest.fixture(scope="module")
def outside(site: Site) -> Iterator[Path]:
    """A directory outside /tmp, which in a container is the job's own: for the packages and the sandboxes."""
    with tempfile.TemporaryDirectory(prefix="ja-", dir="/srv" if os.geteuid() == 0 else Path.home()) as name:
        Path(name).chmod(0o755)
        for part in ("cache", "execute"):
            (Path(name) / part).mkdir()
        owner = accounts.of_daemons() if site.pool.account.uid == 0 else site.pool.account
        shutil.chown(Path(name) / "execute", owner.uid, owner.gid)
        yield Path(name)


@pytest.fixture(scope="module")
def boxes(site: Site, python: Interpreter, runtime: Apptainer, outside: Path) -> Iterator[str]:
    """A machine with the runtime; only jobs that ask for it come."""
    config = f'SINGULARITY = {runtime.program}\nEXECUTE = {outside}/execute\nSTART = TARGET.WantPoint =?= "boxes"\n'
    point = equipped.add(site.pool, "boxes", site.world, python, config=config, cache=outside / "cache")
    point.ask("hello")
    ads = [ad for ad in site.pool.machines("EPName", "HasSingularity") if ad["EPName"] == "boxes"]
    assert all(ad.get("HasSingularity") for ad in ads), point.point.log("StartLog")[-2000:]
    yield "boxes"
    point.point.stop()


def test_a_payload_in_a_container_finds_its_packages(site: Site, boxes: str, runtime: Apptainer) -> None:
    script = b"""#!/bin/sh
hello
echo "$MINE"
test -e /bin/busybox && test ! -e /usr/bin && echo inside
case $LD_LIBRARY_PATH in *$TOOL_ROOT/lib*) echo libraries; esac
touch $TOOL_ROOT/x 2>/dev/null && echo writable
echo kept > result.txt
"""
    cluster = site.submit(
        f"universe = container\ncontainer_image = {runtime.image}\ntransfer_container = false",
        "executable = run.sh\ntransfer_output_files = result.txt",
        f'MY.WantPoint = "{boxes}"\nenvironment = "MINE=\'my own\'"',
        packages=wanting(site.packages.tool),
        **{"run.sh": script},
    )
    (event,) = site.pool.jobs.wait(cluster, timeout_s=60)
    assert event.fields.get("ReturnValue") == 0, event.reason
    assert site.output(cluster) == "hello from tool 1, 1000 bytes of base\nmy own\ninside\nlibraries\n"
    assert (site.pool.sandbox(cluster) / "result.txt").read_text() == "kept\n"
    assert site.pool.history(cluster)[0]["JobAgentPackages"] == [site.packages.base, site.packages.tool]
