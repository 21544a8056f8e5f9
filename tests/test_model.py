"""Package names as users write them, and nothing else, become packages."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobagent.errors import JobSyntaxError
from jobagent.model import PackageId, PackageSpec, namespace_of, owner_of


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("VO_ALICE@ROOT::v6-36", ("alice", "ROOT", "v6-36")),
        ("VO_ALICE@Python-modules::1.0-4", ("alice", "Python-modules", "1.0-4")),
        (" VO_ALICE@AliEn-Runtime::v2-19-le-1 ", ("alice", "AliEn-Runtime", "v2-19-le-1")),
        (
            "VO_ALICE@O2PDPSuite::async-async-v1-02-10-slc9-alidist-async-v1-02-01-1",
            ("alice", "O2PDPSuite", "async-async-v1-02-10-slc9-alidist-async-v1-02-01-1"),
        ),
        ("ROOT", (None, "ROOT", None)),
        ("ROOT::v6", (None, "ROOT", "v6")),
        ("AliPhysics/vAN-20260101-1", (None, "AliPhysics", "vAN-20260101-1")),
        ("jdoe@Mine::1", ("user.jdoe", "Mine", "1")),
    ],
)
def test_real_names_are_read(text, parts):
    spec = PackageSpec.parse(text)
    assert (spec.namespace, spec.name, spec.version) == parts


@pytest.mark.acceptance(28)
@given(st.text(max_size=300))
@example("../etc/passwd")
@example("VO_ALICE@ROOT::v6;rm -rf /")
@example("VO_ALICE@ROOT::$(id)")
@example("ROOT\nROOT")
@example("ROOT\0")
@example("-rf")
@example("VO_ALICE@..::..")
def test_what_is_no_name_never_gets_past_the_grammar(text):
    try:
        spec = PackageSpec.parse(text)
    except JobSyntaxError as error:
        assert "\n" not in str(error)
        return
    for part in (spec.name, spec.version or "x", spec.namespace or "x"):
        assert part not in {".", ".."}
        assert part.isascii() and part[0] not in ".-" and not set(part) & set("/\\;$ \n\0'\"`|&<>*?()")


@given(st.from_regex(r"[A-Z0-9]{1,12}", fullmatch=True))
def test_owner_and_namespace_are_inverse(org):
    assert owner_of(namespace_of(f"VO_{org}")) == f"VO_{org}"
    assert owner_of(namespace_of("jdoe")) == "jdoe"


def test_an_id_must_be_whole():
    assert str(PackageId.parse("VO_ALICE@ROOT::v6")) == "VO_ALICE@ROOT::v6"
    with pytest.raises(JobSyntaxError, match="owner and version"):
        PackageId.parse("ROOT::v6")
