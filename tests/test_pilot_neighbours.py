"""The first stage crosses into a site about once; after that neighbours give it to each other."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobagent.central.services.neighbours import FromHere, FromNeighbour, Neighbourhood, Policy, Wait
from jobagent.central.services.pilotweb import TURNS
from jobagent.central.services.tracker import Sites
from jobagent.testing.world import World
from tests.conftest import need

DIGEST = "d" * 64
A, B, C = (ipaddress.ip_address(f"10.1.1.{n}") for n in (1, 2, 3))
ELSEWHERE = ipaddress.ip_address("10.2.2.1")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def place(clock: Clock) -> Neighbourhood:
    return Neighbourhood(clock=clock, policy=Policy(helped_at_a_time=2, help_s=10, patience_s=20, offer_s=180))


def test_the_first_of_a_site_gets_it_here_and_the_others_wait(place: Neighbourhood) -> None:
    assert place.ask(DIGEST, A) == FromHere()
    assert place.ask(DIGEST, B) == place.ask(DIGEST, C) == Wait()
    assert place.ask(DIGEST, ELSEWHERE) == FromHere()  # another site has its own first
    assert place.ask("e" * 64, B) == FromHere()  # and so has another file


def test_once_it_is_offered_the_others_get_it_there(place: Neighbourhood) -> None:
    place.ask(DIGEST, A)
    place.offer(DIGEST, A, 4000)
    assert place.ask(DIGEST, B) == FromNeighbour(A, 4000)
    assert place.ask(DIGEST, ELSEWHERE) == FromHere()


def test_a_helper_gets_few_at_a_time_and_whoever_was_helped_helps(place: Neighbourhood) -> None:
    place.offer(DIGEST, A, 4000)
    helped = [ipaddress.ip_address(f"10.1.1.{n}") for n in range(10, 13)]
    assert [place.ask(DIGEST, asker) for asker in helped] == [FromNeighbour(A, 4000)] * 2 + [Wait()]
    place.offer(DIGEST, helped[0], 5000)
    assert place.ask(DIGEST, helped[2]) == FromNeighbour(helped[0], 5000)


def test_the_copies_grow_like_a_tree(place: Neighbourhood) -> None:
    place.ask(DIGEST, A)
    place.offer(DIGEST, A, 4000)
    waiting = [ipaddress.ip_address(f"10.1.1.{n}") for n in range(2, 102)]
    rounds, by_helper = 0, Counter[object]()
    while waiting:
        rounds += 1
        answers = {asker: place.ask(DIGEST, asker) for asker in waiting}
        for asker, answer in answers.items():
            if isinstance(answer, FromNeighbour):
                by_helper[answer.address] += 1
                place.offer(DIGEST, asker, 4000)
                waiting.remove(asker)
    assert rounds <= 6 and max(by_helper.values()) <= 2 * rounds


def test_a_first_that_never_offers_is_not_waited_for_long(place: Neighbourhood, clock: Clock) -> None:
    place.ask(DIGEST, A)
    clock.now_s += 19
    assert place.ask(DIGEST, B, waited_s=10) == Wait()
    clock.now_s += 2
    assert place.ask(DIGEST, B, waited_s=12) == FromHere()  # and is the first now
    assert place.ask(DIGEST, C) == Wait()


def test_nobody_is_held_longer_than_a_downloader_waits(place: Neighbourhood) -> None:
    place.ask(DIGEST, A)
    assert place.ask(DIGEST, B, waited_s=20) == FromHere()


def test_offers_end_by_word_and_by_silence(place: Neighbourhood, clock: Clock) -> None:
    place.offer(DIGEST, A, 4000)
    place.offer(DIGEST, B, 4001)
    place.offer(DIGEST, A, 0)
    assert place.ask(DIGEST, C) == FromNeighbour(B, 4001)
    clock.now_s += 181
    assert place.ask(DIGEST, C) == FromHere()


def test_a_helper_is_not_sent_to_itself(place: Neighbourhood) -> None:
    place.offer(DIGEST, A, 4000)
    assert place.ask(DIGEST, A) == FromHere()


def test_a_neighbour_that_failed_somebody_is_forgotten(place: Neighbourhood, clock: Clock) -> None:
    place.offer(DIGEST, A, 4000)
    place.offer(DIGEST, C, 4001)
    assert place.ask(DIGEST, B) == FromNeighbour(A, 4000)
    place.failed(DIGEST, B)
    assert place.ask(DIGEST, ELSEWHERE) == FromHere()
    assert place.ask(DIGEST, B) == FromNeighbour(C, 4001)
    clock.now_s += 11  # long after it was helped, nobody is blamed
    place.failed(DIGEST, B)
    assert place.ask(DIGEST, B) == FromNeighbour(C, 4001)


def test_configured_networks_make_a_site(clock: Clock) -> None:
    sites = Sites({"cern": [ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("10.2.0.0/16")]})
    place = Neighbourhood(clock=clock, sites=sites)
    place.offer(DIGEST, ELSEWHERE, 4000)
    assert place.ask(DIGEST, A) == FromNeighbour(ELSEWHERE, 4000)


# --- over HTTP


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    with made.serving():
        yield made


def put(world: World, data: bytes) -> str:
    directory = world.catalogue / "pilot"
    directory.mkdir(exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()
    (directory / digest).write_bytes(data)
    return digest


def fetch(url: str, address: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    argv = [need("curl"), "-sSfL", "--interface", address, "-w", "%{stderr}%{num_redirects}", *options, url]
    return subprocess.run(argv, capture_output=True, timeout=60, check=False)


def test_neighbours_give_it_out_and_the_central_server_sends_one_copy(world: World, tmp_path: Path) -> None:
    data = b"runtime " * 500_000
    digest = put(world, data)
    url = f"{world.url}/pilot/{digest}"
    before = int(world.status()["server"]["http_bytes"])
    assert fetch(url, "127.5.5.1").stdout == data
    with ThreadPoolExecutor(8) as pool:  # these are held until the first one offers
        others = [pool.submit(fetch, url, f"127.5.5.{n}") for n in range(2, 10)]
        file = tmp_path / "runtime"
        file.write_bytes(data)
        program = [
            sys.executable,
            "-m",
            "jobagent.condor.pilots.neighbour",
            str(file),
            f"{url}/offer",
            "--address",
            "127.5.5.1",
        ]
        with subprocess.Popen(program, stderr=subprocess.PIPE) as neighbour:
            # the neighbour announces from its own address, which on loopback is another: say it in its name
            assert neighbour.stderr is not None
            port = int(neighbour.stderr.readline().rsplit(b" ", 1)[1])
            fetch(f"{url}/offer?port={port}", "127.5.5.1")
            results = [other.result() for other in others]
            neighbour.send_signal(signal.SIGTERM)
            neighbour.wait(10)
    assert all((r.stdout == data, r.stderr[-1:]) == (True, b"1") for r in results)
    assert int(world.status()["server"]["http_bytes"]) - before < 1.1 * len(data)


def test_direct_is_always_from_here(world: World) -> None:
    digest = put(world, b"direct")
    url = f"{world.url}/pilot/{digest}"
    fetch(f"{url}/offer?port=4000", "127.6.6.1")
    assert (fetch(f"{url}?direct", "127.6.6.2").stdout, fetch(url, "127.6.6.2").returncode != 0) == (b"direct", True)


def test_whom_a_neighbour_failed_is_sent_to_the_next(world: World) -> None:
    url = f"{world.url}/pilot/{put(world, b'from the third')}"
    for number in (1, 2):
        fetch(f"{url}/offer?port=4000", f"127.8.8.{number}")  # both are dead by now
    asked = [fetch(f"{url}{turn}", "127.8.8.9", "-i", "--max-redirs", "0").stdout for turn in TURNS]
    helpers = [re.findall(rb"location: http://127\.8\.8\.(\d):4000/", answer) for answer in asked]
    assert helpers == [[b"1"], [b"2"], [], []]
    assert asked[2].endswith(b"from the third")


def test_a_sites_proxy_is_not_held_and_may_keep_it(world: World) -> None:
    url = f"{world.url}/pilot/{put(world, b'for a proxy')}"
    begin = time.monotonic()
    for _ in range(2):
        done = fetch(url, "127.7.7.1", "-i", "-H", "Via: 1.1 squid.site.example")
        assert done.stdout.endswith(b"for a proxy") and b"immutable" in done.stdout
    assert time.monotonic() - begin < 10
    fetch(f"{url}/offer?port=4000", "127.7.7.2")
    done = fetch(url, "127.7.7.1", "-i", "--max-redirs", "0", "-H", "Via: 1.1 squid.site.example")
    assert b"location: http://127.7.7.2:4000/" in done.stdout and b"no-store" in done.stdout


@pytest.mark.parametrize(
    "path",
    [
        "",
        "x",
        "../metadata/1.root.json",
        "%2e%2e/metadata/1.root.json",
        "0" * 64,
        "{digest}/x",
        "{digest}/offer?port=22",
    ],
)
def test_nothing_else_is_served_there(world: World, path: str) -> None:
    digest = put(world, b"secret")
    argv = [need("curl"), "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--path-as-is"]
    url = f"{world.url}/pilot/{path.replace('{digest}', digest)}"
    done = subprocess.run([*argv, url], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout in {"400", "404", "307"}


def test_the_script_is_where_people_type_it(world: World) -> None:
    put(world, b"")
    (world.catalogue / "pilot" / "pilot.sh").write_text("#!/bin/sh\n")
    for path in ("pilot.sh", "pilot/pilot.sh"):
        with urllib.request.urlopen(f"{world.url}/{path}", timeout=10) as answer:
            assert answer.read() == b"#!/bin/sh\n"
