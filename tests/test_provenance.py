"""A bill of materials is a valid CycloneDX document whatever a build says of its sources, and gives nobody away."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent.central.packaging.provenance import Component, Origin, bill_of_materials
from jobagent.model import PackageId

# RFC 3986 with the characters of RFC 3987 left out, which `quote` writes as %xx
URI_REFERENCE = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?://[^/?#\s@]*)?(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
    r"(?:\?[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*)?(?:#[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*)?"
)


def reference_of(source: str) -> str:
    origin = Origin("alibuild", [Component("zlib", "1.3", source=source)])
    document = json.loads(bill_of_materials(PackageId("alice", "ROOT", "6"), "", "", origin))
    (reference,) = document["components"][0]["externalReferences"]
    assert reference["type"] == "distribution"
    return str(reference["url"])


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("https://github.com/root-project/root", "https://github.com/root-project/root"),
        ("https://oauth2:s3cret@git.example/a.git", "https://git.example/a.git"),
        ("git@github.com:alisw/zlib.git", "ssh://github.com/alisw/zlib.git"),
        ("file:///sw/a b.tar.gz", "file:///sw/a%20b.tar.gz"),
        ("http://[::1/x", "http%3A//%5B%3A%3A1/x"),
    ],
)
def test_a_source_is_written_as_a_uri_without_who_fetched_it(source: str, url: str) -> None:
    assert reference_of(source) == url


@given(st.text(min_size=1, max_size=40))
def test_any_source_becomes_a_uri_reference(source: str) -> None:
    assert URI_REFERENCE.fullmatch(reference_of(source))
