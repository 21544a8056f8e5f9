"""Bencoding of hostile data: canonical or refused, in bounded time and memory."""

from __future__ import annotations

import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent import bencode

values = st.recursive(
    st.integers(-(2**62), 2**62) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.binary(max_size=8), inner, max_size=5),
    max_leaves=20,
)


@given(values)
def test_what_is_encoded_decodes_to_the_same_value(value):
    assert bencode.decode(bencode.encode(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_decode_canonically_or_are_a_value_error(data):
    try:
        value = bencode.decode(data)
    except ValueError:
        return
    assert bencode.encode(value) == data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no value at offset 0"),
        (b"i03e", "no canonical integer"),
        (b"i-0e", "no canonical integer"),
        (b"ie", "no canonical integer"),
        (b"i+1e", "no canonical integer"),
        (b"i 1e", "no canonical integer"),
        (b"i" + b"9" * 4000 + b"e", "no canonical integer"),
        (b"-1:a", "no value"),
        (b"01:a", "no canonical integer"),
        (b"99999999999999999999:a", "passes the end"),
        (b"5:abc", "passes the end"),
        (b"l", "no value at offset 1"),
        (b"d1:b0:1:a0:e", "not sorted"),
        (b"d1:a0:1:a0:e", "not sorted"),
        (b"di1e0:e", "no canonical integer"),
        (b"i1ei2e", "3 bytes follow"),
        (b"l" + b"le" * 300_000 + b"e", "more than 200000 values"),
        (b"l" * 5000 + b"e" * 5000, "nested deeper than 32"),
    ],
)
def test_malformed_data_is_refused_with_offset_and_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        bencode.decode(data)


def test_size_limit_is_checked_before_anything_is_allocated():
    data = b"l" + b"le" * 4_000_000 + b"e"
    tracemalloc.start()
    with pytest.raises(ValueError, match="at most 1000"):
        bencode.decode(data, max_bytes=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_raw_member_is_the_slice_that_an_infohash_is_made_of():
    info = bencode.encode({b"name": b"x", b"piece length": 16384})
    data = b"d8:announce3:abc4:info" + info + b"e"
    assert hashlib.sha256(bencode.raw_member(data, b"info")).digest() == hashlib.sha256(info).digest()


@pytest.mark.parametrize("data", [b"i1e", b"de", b"d4:infodee1", b"d4:infode", b""])
def test_raw_member_refuses_what_has_no_such_member(data):
    with pytest.raises(ValueError):
        bencode.raw_member(data, b"info")
