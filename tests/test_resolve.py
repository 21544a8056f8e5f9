"""The closure of packages: choice of versions, order, and every refusal."""

import pytest

from jobagent.errors import (
    DependencyCycle,
    JobError,
    PackageBanned,
    UnknownPackage,
    VersionConflict,
    WrongPlatform,
)
from jobagent.job.resolve import resolve
from jobagent.model import PackageSpec, PackageState, Requirement
from jobagent.testing.catalogue import FakeCatalogue
from jobagent.testing.packages import make_package

LINUX = "Linux-x86_64"


def plan(packages, *asked, vo="alice"):
    requirement = Requirement(tuple(PackageSpec.parse(a) for a in asked), vo, LINUX)
    return resolve(requirement, FakeCatalogue(packages))


def ids(result):
    return [str(p.id) for p in result.packages]


def test_dependencies_come_before_what_needs_them_and_each_package_once():
    packages = [
        make_package("VO_ALICE@zlib::1"),
        make_package("VO_ALICE@ROOT::6", dependencies=["VO_ALICE@zlib::1"]),
        make_package("VO_ALICE@GEANT3::4", dependencies=["VO_ALICE@ROOT::6", "VO_ALICE@zlib::1"]),
    ]
    result = plan(packages, "GEANT3::4", "ROOT")
    assert ids(result) == ["VO_ALICE@zlib::1", "VO_ALICE@ROOT::6", "VO_ALICE@GEANT3::4"]
    assert [str(i) for i in result.requested] == ["VO_ALICE@GEANT3::4", "VO_ALICE@ROOT::6"]


def test_without_version_the_newest_released_is_chosen_and_said():
    packages = [
        make_package("VO_ALICE@ROOT::v6-36", published_s=10),
        make_package("VO_ALICE@ROOT::v6-9", published_s=30),
        make_package("VO_ALICE@ROOT::v6-40", published_s=40, state=PackageState.WITHDRAWN),
        make_package("VO_ALICE@ROOT::v6-41", published_s=50, state=PackageState.BANNED),
    ]
    result = plan(packages, "ROOT")
    assert ids(result) == ["VO_ALICE@ROOT::v6-9"]
    assert [str(i) for i in result.defaulted] == ["VO_ALICE@ROOT::v6-9"]


def test_a_withdrawn_version_serves_who_names_it():
    assert ids(plan([make_package("VO_ALICE@ROOT::1", state=PackageState.WITHDRAWN)], "ROOT::1"))


def test_an_open_version_follows_one_that_the_job_fixes():
    packages = [
        make_package("VO_ALICE@ROOT::1", published_s=1),
        make_package("VO_ALICE@ROOT::2", published_s=2),
        make_package("VO_ALICE@A::1", dependencies=["VO_ALICE@ROOT::1"]),
    ]
    assert ids(plan(packages, "A", "ROOT")) == ["VO_ALICE@ROOT::1", "VO_ALICE@A::1"]
    assert ids(plan(packages, "ROOT", "ROOT::1")) == ["VO_ALICE@ROOT::1"]


@pytest.mark.acceptance(29)
def test_a_conflict_names_both_versions_and_who_asked():
    packages = [
        make_package("VO_ALICE@ROOT::1"),
        make_package("VO_ALICE@ROOT::2"),
        make_package("VO_ALICE@A::1", dependencies=["VO_ALICE@ROOT::1"]),
        make_package("VO_ALICE@B::1", dependencies=["VO_ALICE@ROOT::2"]),
    ]
    with pytest.raises(VersionConflict) as caught:
        plan(packages, "A", "B")
    text = str(caught.value)
    assert "VO_ALICE@ROOT::1 (asked for by VO_ALICE@A::1)" in text
    assert "VO_ALICE@ROOT::2 (asked for by VO_ALICE@B::1)" in text


@pytest.mark.acceptance(29)
def test_a_cycle_is_shown():
    packages = [
        make_package("VO_ALICE@A::1", dependencies=["VO_ALICE@B::1"]),
        make_package("VO_ALICE@B::1", dependencies=["VO_ALICE@A::1"]),
    ]
    with pytest.raises(DependencyCycle, match="VO_ALICE@A::1 → VO_ALICE@B::1 → VO_ALICE@A::1"):
        plan(packages, "A")


def test_a_chain_without_end_is_refused_before_the_stack_is():
    packages = [make_package(f"VO_ALICE@P{i}::1", dependencies=[f"VO_ALICE@P{i + 1}::1"]) for i in range(900)]
    with pytest.raises(JobError, match="chain"):
        plan(packages, "P0")


@pytest.mark.acceptance(29)
def test_an_unknown_name_gets_the_nearest_names():
    with pytest.raises(UnknownPackage, match=r"Package not defined: VO_ALICE@Rooot.*nearest names: ROOT"):
        plan([make_package("VO_ALICE@ROOT::1")], "Rooot")


def test_an_unknown_version_gets_the_versions_there_are():
    with pytest.raises(UnknownPackage, match=r"ROOT::v9.*versions there are: v6-36"):
        plan([make_package("VO_ALICE@ROOT::v6-36")], "ROOT::v9")


def test_an_unknown_vo_gets_the_vos_there_are():
    with pytest.raises(UnknownPackage, match="has the VOs: alice"):
        plan([make_package("VO_ALICE@ROOT::1")], "VO_CMS@ROOT")


def test_another_platform_is_named():
    with pytest.raises(WrongPlatform, match="it is for Linux-aarch64"):
        plan([make_package("VO_ALICE@ROOT::1", platform="Linux-aarch64")], "ROOT")


def test_a_banned_package_is_refused_with_its_reason():
    packages = [make_package("VO_ALICE@ROOT::1", state=PackageState.BANNED, reason="wrong field map")]
    with pytest.raises(PackageBanned, match="wrong field map"):
        plan(packages, "ROOT::1")


def test_a_package_without_owner_needs_a_vo():
    with pytest.raises(JobError, match="names no owner"):
        plan([make_package("VO_ALICE@ROOT::1")], "ROOT", vo=None)
