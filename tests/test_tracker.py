"""The tracker's rules, with an injected clock and a seeded choice; then its wire form, as hostile clients use it."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
import sys
from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from jobagent import bencode
from jobagent.central.services import announces, tokens
from jobagent.central.services.tracker import (
    Announce,
    Answer,
    Counts,
    Event,
    Policy,
    Refused,
    Sites,
    Tracked,
    Tracker,
)

V1, V2, OTHER = b"1" * 20, b"2" * 20, b"3" * 20
HERE = ipaddress.ip_address("10.9.9.9")
CERN, GSI = ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("10.2.0.0/16")


class Field:
    """A tracker with a clock that the test moves."""

    def __init__(self, *, sites: Sites | None = None, policy: Policy | None = None, home: int = 0) -> None:
        self.now = 1000.0
        self.allowed: Mapping[bytes, Tracked] | None = {
            V1: Tracked("A", frozenset({"alice"})),
            V2: Tracked("A", frozenset({"alice"})),
            OTHER: Tracked("B", frozenset({"atlas"})),
        }
        self.tracker = Tracker(
            lambda: self.allowed,
            clock=lambda: self.now,
            choice=random.Random(1),
            sites=sites,
            policy=policy,
            home=lambda key: home,
        )

    def announce(self, number: int, *, infohash: bytes = V1, network: str = "10.0", **fields: object) -> Answer:
        announce = Announce(
            infohash=infohash,
            peer_id=fields.pop("peer_id", b"-JA0100-%012d" % number),  # type: ignore[arg-type]
            address=ipaddress.ip_address(f"{network}.{number // 250}.{number % 250 + 1}"),
            port=6881,
            left=1,
            server=HERE,
        )
        return self.tracker.announce(dataclasses.replace(announce, **fields))

    def sites_of(self, answer: Answer) -> set[str]:
        return {p.site for p in answer.peers}


def test_peers_hear_of_each_other_but_not_of_themselves() -> None:
    field = Field()
    assert field.announce(1).peers == ()
    assert [str(p.address) for p in field.announce(2).peers] == ["10.0.0.2"]
    assert [str(p.address) for p in field.announce(1).peers] == ["10.0.0.3"]


def test_v1_and_truncated_v2_infohashes_are_one_swarm_and_one_peer() -> None:
    field = Field()
    field.announce(1, infohash=V1)
    field.announce(1, infohash=V2)
    answer = field.announce(2, infohash=V2)
    assert len(answer.peers) == 1 and (answer.complete, answer.incomplete) == (0, 2)


def test_swarms_are_kept_apart() -> None:
    field = Field()
    field.announce(1, infohash=V1)
    assert field.announce(2, infohash=OTHER).peers == ()


def test_infohash_that_nobody_signed_is_refused() -> None:
    with pytest.raises(Refused, match="not in the catalogue"):
        Field().announce(1, infohash=b"x" * 20)


@pytest.mark.acceptance(36)
@pytest.mark.parametrize("allowed", [None, {}])
def test_tracker_without_a_verified_list_tracks_nothing(allowed: Mapping[bytes, Tracked] | None) -> None:
    field = Field()
    field.announce(1)
    field.allowed = allowed
    with pytest.raises(Refused, match="cannot be verified" if allowed is None else "not in the catalogue"):
        field.announce(2)


def test_withdrawn_permission_ends_a_swarm_at_once() -> None:
    field = Field()
    field.announce(1)
    field.allowed = {OTHER: Tracked("B", frozenset({"atlas"}))}
    with pytest.raises(Refused):
        field.announce(1)


def test_seeds_are_not_told_of_seeds() -> None:
    field = Field()
    field.announce(1, left=0)
    assert field.announce(2, left=0).peers == ()
    assert len(field.announce(3).peers) == 2
    assert len(field.announce(1, left=0).peers) == 1


def test_stopped_peer_is_gone_and_told_of_nobody() -> None:
    field = Field()
    field.announce(1)
    assert field.announce(2, event=Event.STOPPED).peers == ()
    field.announce(1, event=Event.STOPPED)
    assert field.announce(3).peers == ()
    assert field.tracker.peer_count == 1


def test_peer_cannot_be_stopped_from_another_address() -> None:
    field = Field()
    field.announce(1)
    field.announce(2, peer_id=b"-JA0100-%012d" % 1, event=Event.STOPPED)
    assert len(field.announce(3).peers) == 1


def test_silent_peer_expires_after_two_intervals_and_not_before() -> None:
    field = Field()
    field.announce(1)
    interval = field.announce(2).interval_s
    field.now += 1.5 * interval
    assert len(field.announce(3).peers) == 2
    field.now += interval + 31
    assert {str(p.address) for p in field.announce(3).peers} == set()


def test_completions_and_received_bytes_are_counted_once() -> None:
    field = Field()
    for infohash in (V1, V2):
        field.announce(1, infohash=infohash, downloaded=600)
    for infohash in (V1, V2):
        field.announce(1, infohash=infohash, downloaded=1000, left=0, event=Event.COMPLETED)
    counts = field.tracker.counts("A")
    assert (counts.downloaded, counts.transferred_bytes, counts.complete) == (1, 1000, 1)


def test_download_only_peer_is_counted_but_nobody_is_sent_to_it() -> None:
    field = Field()
    field.announce(1, port=0)
    answer = field.announce(2)
    assert answer.peers == () and answer.incomplete == 2


def test_peer_without_peers_is_told_to_ask_again_soon() -> None:
    field = Field()
    assert field.announce(1).interval_s == field.tracker.policy.min_interval_s
    assert field.announce(2).interval_s == field.tracker.policy.busy_interval_s
    assert Field().announce(1, left=0).interval_s == field.tracker.policy.idle_interval_s


def test_intervals_grow_before_announces_become_too_many() -> None:
    field = Field(policy=Policy(max_announces_per_s=2))
    for number in range(100):
        answer = field.announce(number)
    assert answer.interval_s >= 99


def test_swarm_address_and_answer_are_bounded() -> None:
    field = Field(policy=Policy(max_peers=50, max_peers_per_address=4, max_wanted=10))
    for number in range(200):
        assert len(field.announce(number, wanted=10_000).peers) <= 10
        field.now += 0.01
    assert field.tracker.peer_count == 50
    for number in range(20):
        field.announce(1, peer_id=b"-XX0100-%012d" % number)
    same = [p for p in field.tracker._swarms["A"].peers.values() if str(p.address) == "10.0.0.2"]
    assert len(same) == 4 and field.tracker.peer_count <= 50


def test_seeder_beside_the_tracker_is_at_the_address_that_was_asked() -> None:
    field = Field(home=5555)
    (home,) = field.announce(1).peers
    assert (home.address, home.port, home.is_seeder) == (HERE, 5555, True)
    assert field.announce(2, left=0).peers[0].peer_id != home.peer_id
    assert field.tracker.counts("A").complete == 2


# Sites


def two_sites(elected: int = 2, policy: Policy | None = None) -> Field:
    return Field(sites=Sites({"CERN": [CERN], "GSI": [GSI]}), policy=policy or Policy(elected=elected), home=5555)


def test_longest_network_decides_the_site() -> None:
    inner = ipaddress.ip_network("10.1.7.0/24")
    sites = Sites({"CERN": [CERN], "Hall 7": [inner], "SIX": [ipaddress.ip_network("2001:db8::/32")]})
    assert sites.of(ipaddress.ip_address("10.1.7.1")) == "Hall 7"
    assert sites.of(ipaddress.ip_address("10.1.8.1")) == "CERN"
    assert sites.of(ipaddress.ip_address("2001:db8::1")) == "SIX"
    assert sites.of(ipaddress.ip_address("192.0.2.1")) == ""


def test_peers_of_the_own_site_come_first() -> None:
    field = two_sites()
    for number in range(100):
        field.announce(number, network="10.2")
    for number in range(20):
        field.announce(number, network="10.1")
    answer = field.announce(1, network="10.1", wanted=30)
    assert sum(p.site == "CERN" for p in answer.peers) == 19


def test_only_elected_peers_of_a_site_hear_of_the_outside() -> None:
    field = two_sites()
    for network in ("10.2", "10.1"):
        for number in range(10):
            field.announce(number, network=network)
    outside = [bool(field.sites_of(field.announce(n, network="10.1")) - {"CERN"}) for n in range(10)]
    assert outside == [True, True] + [False] * 8


def test_outside_hears_only_of_elected_peers_of_a_site() -> None:
    field = two_sites()
    for number in range(10):
        field.announce(number, network="10.1")
    seen = {str(p.address) for p in field.announce(50, network="10.2").peers if p.site == "CERN"}
    assert seen == {"10.1.0.1", "10.1.0.2"}


def test_a_site_whose_seeder_listens_waits_for_it_and_not_for_long() -> None:
    field = two_sites(elected=1)
    field.announce(100)
    field.tracker.listen("CERN")
    answer = field.announce(0, network="10.1")
    assert answer.peers == () and answer.interval_s == field.tracker.policy.min_interval_s
    assert field.sites_of(field.announce(50, network="10.2")) == {""}  # nobody is sent to who waits
    field.now += 3
    field.tracker.listen("CERN")
    answer = field.announce(1, network="10.1")
    assert field.sites_of(answer) == {"CERN"} and answer.interval_s == field.tracker.policy.min_interval_s
    field.now += 3.1
    field.tracker.listen("CERN")
    assert field.sites_of(field.announce(0, network="10.1")) == {"CERN", "GSI", ""}  # it had its time


def test_the_seeder_that_was_waited_for_is_told_of_everybody() -> None:
    field = two_sites(elected=1)
    field.announce(100)
    field.tracker.listen("CERN")
    field.announce(0, network="10.1")
    assert field.sites_of(field.announce(9, network="10.1", peer_id=b"-JS0100-at-the-site.")) == {"CERN", ""}
    assert field.sites_of(field.announce(0, network="10.1")) == {"CERN"}


def test_a_seeder_that_went_away_is_not_waited_for() -> None:
    field = two_sites(elected=1)
    field.announce(100)
    field.tracker.listen("CERN")
    field.now += 2.1
    assert field.sites_of(field.announce(0, network="10.1")) == {""}


def test_the_tag_changes_when_a_site_comes_to_want_something() -> None:
    field, other = two_sites(), two_sites()
    other.tracker = Tracker(lambda: other.allowed, clock=lambda: other.now, choice=random.Random(2))
    tag = field.tracker.listen("CERN")
    assert tag != other.tracker.listen("CERN")  # of another life
    field.announce(0, network="10.2")
    field.announce(9, network="10.1", peer_id=b"-JS0100-at-the-site.")
    assert field.tracker.listen("CERN") == tag and field.tracker.wanted("CERN") == []
    field.announce(0, network="10.1")
    assert (changed := field.tracker.listen("CERN")) != tag and field.tracker.wanted("CERN") == ["A"]
    field.announce(1, network="10.1")
    field.announce(0, network="10.1")
    assert field.tracker.listen("CERN") == changed
    field.announce(0, network="10.1", infohash=OTHER)
    assert field.tracker.listen("CERN") != changed and sorted(field.tracker.wanted("CERN")) == ["A", "B"]


def test_next_peer_is_elected_when_one_leaves() -> None:
    field = two_sites(elected=1)
    for number in range(3):
        field.announce(number, network="10.1")
    assert field.sites_of(field.announce(1, network="10.1")) == {"CERN"}
    field.announce(0, network="10.1", event=Event.STOPPED)
    assert field.sites_of(field.announce(1, network="10.1")) == {"CERN", ""}


def test_seeder_of_a_site_stands_for_its_site() -> None:
    field = two_sites()
    for number in range(3):
        field.announce(number, network="10.1")
    field.announce(99, network="10.1", peer_id=b"-JS0100-" + b"s" * 12)
    assert field.sites_of(field.announce(0, network="10.1")) == {"CERN"}
    assert {str(p.address) for p in field.announce(50, network="10.2").peers if p.site} == {"10.1.0.100"}


def test_signed_site_overrules_the_network() -> None:
    field = two_sites()
    field.announce(1, network="10.1", site="GSI")
    assert field.tracker.counts("A").by_site == {"GSI": (0, 1)}


@pytest.mark.acceptance(37)
def test_where_sites_are_enforced_a_peer_must_come_from_the_network_of_its_site() -> None:
    field = two_sites(policy=Policy(needs_site=True))
    field.announce(1, network="10.1", site="CERN")
    field.announce(2, network="10.2")
    with pytest.raises(Refused, match=r"10.9.0.4 is in no network of a site of this tracker"):
        field.announce(3, network="10.9")
    with pytest.raises(Refused, match=r"the token is for site CERN, 10.2.0.5 is of GSI"):
        field.announce(4, network="10.2", site="CERN")
    assert field.tracker.counts("A").by_site == {"CERN": (0, 1), "GSI": (0, 1)}


def test_peers_of_no_known_site_see_everybody_who_may_be_seen() -> None:
    field = two_sites()
    for number in range(5):
        field.announce(number)
    assert len(field.announce(0).peers) == 5  # four others and the seeder


# Tokens


def test_token_of_another_vo_does_not_open_a_swarm() -> None:
    field = Field()
    field.announce(1, namespace="alice")
    with pytest.raises(Refused, match="belongs to alice"):
        field.announce(2, namespace="atlas")
    assert field.tracker.peer_count == 1


KEY = Ed25519PrivateKey.generate()
CLAIMS = tokens.Claims("alice", 2000, "CERN")


def test_token_says_what_was_issued() -> None:
    token = tokens.issue(CLAIMS, KEY)
    assert tokens.verify(token, {"alice": KEY.public_key()}, now_s=1000) == CLAIMS


BAD_TOKENS = {
    "missing": ("", 1000.0, "missing"),
    "malformed": ("x.y", 1000.0, "malformed"),
    "too long": ("x" * 1000, 1000.0, "too long"),
    "of another key": (tokens.issue(CLAIMS, Ed25519PrivateKey.generate()), 1000.0, "not signed"),
    "of an unknown VO": (tokens.issue(tokens.Claims("cms", 2000), KEY), 1000.0, "unknown VO"),
    "expired": (tokens.issue(CLAIMS, KEY), 2000.0, "expired"),
    "valid for too long": (tokens.issue(tokens.Claims("alice", 10**9), KEY), 1000.0, "more than a week"),
    "with a cut signature": (tokens.issue(CLAIMS, KEY)[:-8], 1000.0, "not signed"),
    "with changed claims": ("eyJlIjogMjAwMCwgIm4iOiAiYWxpY2UiLCAicyI6ICJHU0kifQ==." + "A" * 88, 1000.0, "not signed"),
    "of wrong types": (tokens.issue(tokens.Claims("alice", True), KEY), 0.0, "malformed"),
}


@pytest.mark.acceptance(37)
@pytest.mark.parametrize("case", BAD_TOKENS)
def test_bad_token_is_refused(case: str) -> None:
    token, now_s, reason = BAD_TOKENS[case]
    with pytest.raises(tokens.TokenRefused, match=reason):
        tokens.verify(token, {"alice": KEY.public_key()}, now_s=now_s)


@given(st.text(max_size=300))
def test_any_text_is_refused_as_a_token_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(tokens.TokenRefused):
        tokens.verify(text, {"alice": KEY.public_key()}, now_s=1000)


# The wire


def query(**values: str) -> bytes:
    fields = {"info_hash": "1" * 20, "peer_id": "p" * 20, "port": "6881", "left": "5"} | values
    return "&".join(f"{k}={v}" for k, v in fields.items()).encode()


def test_address_is_that_of_the_connection_whatever_the_query_says() -> None:
    parsed = announces.parse(query(ip="6.6.6.6", ipv4="6.6.6.6", ipv6="::1"), HERE)
    assert parsed.announce.address == HERE


def test_mapped_address_is_an_ipv4_peer() -> None:
    parsed = announces.parse(query(), ipaddress.ip_address("::ffff:10.1.2.3"))
    assert parsed.announce.address == ipaddress.ip_address("10.1.2.3")


def test_infohash_is_bytes_and_percent_decoded() -> None:
    parsed = announces.parse(query(info_hash="%00%ff%26" + "a" * 17), HERE)
    assert parsed.announce.infohash == b"\x00\xff&" + b"a" * 17


BAD_QUERIES = {
    "no infohash": (query(info_hash=""), "20 bytes"),
    "a short peer id": (query(peer_id="x"), "20 bytes"),
    "a port of words": (query(port="http"), "port is not a number"),
    "a port too large": (query(port="65536"), "65535"),
    "a negative amount": (query(left="-1"), "left is not a number"),
    "an endless number": (query(left="9" * 100), "left is not a number"),
    "a parameter twice": (query() + b"&left=0", "twice"),
    "a long query": (query(x="y" * 5000), "2048 bytes"),
}


@pytest.mark.parametrize("case", BAD_QUERIES)
def test_bad_announce_is_refused(case: str) -> None:
    data, reason = BAD_QUERIES[case]
    with pytest.raises(Refused, match=reason):
        announces.parse(data, HERE)


@given(st.binary(max_size=400))
def test_any_query_is_parsed_or_refused(data: bytes) -> None:
    for read in (lambda: announces.parse(data, HERE), lambda: announces.scraped_infohashes(data)):
        try:
            read()
        except Refused as error:
            assert bencode.decode(announces.encode_failure(error.cause_line))


def test_compact_answer_separates_address_families() -> None:
    field = Field()
    field.announce(1)
    six = ipaddress.ip_address("2001:db8::1")
    field.announce(2, address=six)
    answer = field.announce(3)
    reply = bencode.decode(announces.encode_answer(answer, is_compact=True, asker=HERE))
    assert isinstance(reply, dict)
    assert reply[b"peers"] == bytes([10, 0, 0, 2]) + (6881).to_bytes(2, "big")
    assert reply[b"peers6"] == six.packed + (6881).to_bytes(2, "big")
    assert reply[b"external ip"] == HERE.packed
    assert (reply[b"interval"], reply[b"min interval"]) == (20, 5)


def test_answer_that_is_not_compact_lists_peers() -> None:
    field = Field()
    field.announce(1)
    reply = bencode.decode(announces.encode_answer(field.announce(2), is_compact=False, asker=HERE))
    assert isinstance(reply, dict)
    assert reply[b"peers"] == [{b"ip": b"10.0.0.2", b"peer id": b"-JA0100-000000000001", b"port": 6881}]


def test_scrape_answers_by_raw_infohash() -> None:
    assert announces.scraped_infohashes(b"info_hash=" + V1 + b"&info_hash=%ff" + b"a" * 19) == [
        V1,
        b"\xff" + b"a" * 19,
    ]
    data = announces.encode_scrape({V1: Counts(1, 2, 3)})
    assert bencode.decode(data) == {b"files": {V1: {b"complete": 1, b"downloaded": 3, b"incomplete": 2}}}
    field = Field()
    field.announce(1, left=0)
    assert field.tracker.scrape(V2) == Counts(1, 0, 0, 0, {"": (1, 0)})
    assert field.tracker.scrape(b"x" * 20) is None


@pytest.mark.parametrize("data", [b"", b"info_hash=short", b"&".join([b"info_hash=" + V1] * 65)])
def test_scrape_of_nothing_or_too_much_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        announces.scraped_infohashes(data)


def test_answers_take_as_long_in_a_crowd_as_among_few() -> None:
    """A flash crowd of a grid is one swarm: nothing may be counted or sorted at each announce."""

    def work(peers: int) -> int:
        field = two_sites()
        for number in range(peers):
            field.announce(number, network=f"10.{1 + number % 3}", left=number % 2)
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            for number in range(20):
                field.announce(number * 7, network=f"10.{1 + number * 7 % 3}", left=number * 7 % 2)
        finally:
            sys.setprofile(None)
        return calls

    assert work(6000) < 1.5 * work(600)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 1))))
def test_numbers_and_lists_are_right_whatever_peers_do(steps: list[tuple[int, int, bool, bool, int]]) -> None:
    field = two_sites()
    expected: dict[int, tuple[str, bool, int]] = {}
    for number, site, is_complete, leaves, port in steps:
        event = Event.STOPPED if leaves else Event.NONE
        name = ("", "CERN", "GSI", "Elsewhere")[site]
        answer = field.announce(number, left=int(not is_complete), event=event, site=name, port=6881 * port)
        if leaves:
            expected.pop(number, None)
        else:
            expected[number] = (name, is_complete, port)
        told = [int(p.peer_id[-2:]) for p in answer.peers if p.address != HERE]
        assert len(set(told)) == len(told) and number not in told
        assert all(expected[n][2] and not (expected[n][1] and is_complete) for n in told)
    counts = field.tracker.counts("A")
    by_site: dict[str, tuple[int, int]] = {}
    for name, is_complete, _ in expected.values():
        complete, incomplete = by_site.get(name, (0, 0))
        by_site[name] = (complete + is_complete, incomplete + (not is_complete))
    assert counts.by_site == by_site
    assert field.tracker.peer_count == len(expected)
