"""The pilot script on bad nodes and bad networks: a clear line, the right exit code, nothing left.

The script runs as an unprivileged user, under each shell, against a real web server on loopback; the runtime that it
fetches here is a small one whose `jobagent` is a shell script (the real one is tested in `test_bundle`).
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pilot_field import SHELLS, Node, Web, drop, make_runtime, send

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
HTML = b"<!DOCTYPE html><html><body>Access denied by proxy</body></html>"
DAY_S = 86_400
MB = 1_000_000


@pytest.fixture(params=sorted(SHELLS))
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    made = Node(request.param)
    yield made
    made.remove()


@pytest.fixture
def dash_node() -> Iterator[Node]:
    made = Node("dash")
    yield made
    made.remove()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.close()


def wait_until(is_so: object, timeout_s: float = 15.0) -> None:
    """Return when `is_so()`; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# --- landing -----------------------------------------------------------------------------------------------------


def test_lands_runs_and_leaves_nothing(node: Node, web: Web) -> None:
    archive, runtime = make_runtime('echo "args: $*"; cat "$JOBAGENT_CONFIG" "$JOBAGENT_PILOT_DIR/root.json"')
    web.answers["/r"] = send(archive)
    done = node.run(node.script(runtime, f"{web.url}/r", settings="[site]"), "run", "my job.jdl")
    assert (done.returncode, done.stdout) == (0, "args: run my job.jdl\n[site]\n{}\n"), done.stderr
    assert node.leftovers() == []


def test_lands_when_piped_from_wget(node: Node, web: Web) -> None:
    archive, runtime = make_runtime('echo "args: $*"')
    web.answers["/r"] = send(archive)
    web.answers["/pilot.sh"] = send(node.script(runtime, f"{web.url}/r").read_bytes())
    shell, node.shell = node.shell, ["sh"]
    done = node.pipe(f"wget -qO- {web.url}/pilot.sh | {' '.join(shell)}")
    assert (done.returncode, done.stdout) == (0, "args: glidein\n"), done.stderr
    assert node.leftovers() == []


def test_half_a_script_runs_nothing(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("echo landed")
    web.answers["/r"] = send(archive)
    text = node.script(runtime, f"{web.url}/r").read_text()
    for part in range(1, 10):
        done = node.pipe(text[: len(text) * part // 10])
        assert "INFO" not in done.stderr and "landed" not in done.stdout
    assert web.asked == [] and node.leftovers() == []


@pytest.mark.parametrize("fetcher", ["wget", "curl", "wget=busybox"])
def test_needs_only_what_a_bare_node_has(dash_node: Node, web: Web, fetcher: str) -> None:
    archive, runtime = make_runtime("echo landed")
    web.answers["/down"], web.answers["/r"] = send(b"oops", status=503), send(archive)
    dash_node.shell = ["/bin/dash"]
    dash_node.only_tools(fetcher)
    done = dash_node.run(dash_node.script(runtime, f"{web.url}/down", f"{web.url}/r"))
    assert (done.returncode, done.stdout) == (0, "landed\n"), done.stderr
    assert "not found" not in done.stderr and "skew_s=0" in done.stderr
    assert dash_node.leftovers() == []


def test_exit_code_of_the_agent_is_the_pilots(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("exit 231")
    web.answers["/r"] = send(archive)
    assert node.run(node.script(runtime, f"{web.url}/r")).returncode == 231
    assert node.leftovers() == []


def test_log_is_kept_where_the_site_wants_it(node: Node, web: Web) -> None:
    log = node.home / "pilot.log"
    done = node.run(node.script(make_runtime("")[1], f"{web.url}/none"), environment={"JOBAGENT_PILOT_LOG": str(log)})
    assert done.returncode == 232
    assert log.read_text() == done.stderr
    first, *_, last = log.read_text().splitlines()
    assert re.search(r" pilot \d+-\d+-[0-9a-f]{8} \+0\.\d\d INFO begin runtime=", first)  # one of its kind
    assert last.endswith("INFO end exit=232")


# --- the network -------------------------------------------------------------------------------------------------


def test_next_url_is_tried_when_a_server_is_bad(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("echo landed")
    web.answers |= {
        "/html": send(HTML),
        "/dropped": drop,
        "/truncated": send(archive[:-50], length=len(archive)),
        "/short": send(archive[:-50]),
        "/wrong": send(archive[:-1] + b"?"),
        "/good": send(archive),
    }
    urls = [f"{web.url}/{name}" for name in ("html", "dropped", "truncated", "short", "missing", "wrong", "good")]
    done = node.run(node.script(runtime, "http://127.0.0.1:9/refused", *urls))
    assert (done.returncode, done.stdout) == (0, "landed\n"), done.stderr
    assert "answered a web page instead of the runtime" in done.stderr
    assert f"gave {len(archive) - 50} of {len(archive)} bytes" in done.stderr
    assert "HTTP/1.0 404" in done.stderr or "HTTP/1.1 404" in done.stderr
    assert node.leftovers() == []


@pytest.mark.parametrize("kind", ["html", "truncated", "refused", "missing"])
def test_no_place_delivers_is_a_supply_error(dash_node: Node, web: Web, kind: str) -> None:
    archive, runtime = make_runtime("echo landed")
    web.answers |= {"/html": send(HTML), "/truncated": send(archive[:-50], length=len(archive))}
    url = "http://127.0.0.1:9/r" if kind == "refused" else f"{web.url}/{kind}"
    done = dash_node.run(dash_node.script(runtime, url))
    assert (done.returncode, done.stdout) == (232, "")
    assert dash_node.leftovers() == []


def test_wrong_digest_is_never_run(node: Node, web: Web) -> None:
    other, _ = make_runtime("echo evil")
    _, runtime = make_runtime("echo landed", padding=b"x" * 10)
    web.answers["/r"] = send(other.ljust(runtime.size_bytes, b"\0"))
    done = node.run(node.script(runtime, f"{web.url}/r"))
    assert (done.returncode, done.stdout) == (242, "")
    assert f"expected {runtime.sha256}; not used" in done.stderr
    assert node.leftovers() == []


def test_endless_answer_is_cut(node: Node, web: Web) -> None:
    def endless(request: object) -> None:
        send(b"", length=10**12)(request)  # type: ignore[arg-type]
        for _ in range(2000):
            request.wfile.write(b"x" * 100_000)  # type: ignore[attr-defined]

    web.answers["/r"] = endless
    done = node.run(node.script(make_runtime("echo landed")[1], f"{web.url}/r"))
    assert done.returncode in {232, 242} and done.stdout == ""
    assert node.leftovers() == []


def test_slow_drip_ends_in_time(node: Node, web: Web) -> None:
    def drip(request: object) -> None:
        send(b"x", length=1000)(request)  # type: ignore[arg-type]
        web.closing.wait(20)

    web.answers["/r"] = drip
    begin = time.monotonic()
    done = node.run(node.script(make_runtime("")[1], f"{web.url}/r"), environment={"JOBAGENT_FETCH_S": "1"})
    assert done.returncode == 232 and time.monotonic() - begin < 8
    assert node.leftovers() == []


@pytest.mark.parametrize("offset_s", [-3 * DAY_S, 3 * DAY_S])
def test_clock_off_by_days_is_a_site_error(node: Node, web: Web, offset_s: int) -> None:
    archive, runtime = make_runtime("echo landed")
    web.answers["/r"] = send(archive, date_s=time.time() - offset_s)
    done = node.run(node.script(runtime, f"{web.url}/r"))
    assert (done.returncode, done.stdout) == (226, "")
    way = "ahead" if offset_s > 0 else "behind"
    assert any(f"the clock is {abs(offset_s) + d} s {way} of" in done.stderr for d in (-2, -1, 0, 1, 2))
    assert node.leftovers() == []


def test_a_proxys_old_copy_is_no_wrong_clock(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("echo landed")
    web.answers["/r"] = send(archive, date_s=time.time() - 3 * DAY_S, age_s=3 * DAY_S)
    assert node.run(node.script(runtime, f"{web.url}/r")).stdout == "landed\n"


@pytest.mark.parametrize("when", ["1970-01-01", "2000-02-29", "2024-12-31", "2026-03-01", "2099-08-09"])
def test_dates_are_read_right(dash_node: Node, web: Web, when: str) -> None:
    archive, runtime = make_runtime("")
    then_s = int(time.mktime((*map(int, when.split("-")), 8, 9, 7, 0, 0, 0))) - time.timezone  # type: ignore[arg-type]
    web.answers["/r"] = send(archive, date_s=then_s)
    skew = {"JOBAGENT_MAX_CLOCK_SKEW_S": "9999999999"}
    done = dash_node.run(dash_node.script(runtime, f"{web.url}/r"), environment=skew)
    shown = int(done.stderr.partition("clock skew_s=")[2].split()[0])
    assert abs(time.time() - then_s - shown) < 3


def test_proxy_of_the_site_is_used(node: Node, web: Web) -> None:
    archive, runtime = make_runtime('echo "$http_proxy"')
    web.answers["/r"] = send(archive)
    done = node.run(node.script(runtime, "http://central.invalid/r"), environment={"HTTP_PROXY": web.url})
    assert (done.returncode, done.stdout) == (0, f"{web.url}\n"), done.stderr
    assert web.asked == ["http://central.invalid/r"]


def test_broken_proxy_is_passed_by(node: Node, web: Web) -> None:
    archive, runtime = make_runtime('echo "$http_proxy"')
    web.answers["/r"] = send(archive)
    proxy = Web()
    proxy.answers["/r"] = send(HTML)
    try:
        done = node.run(node.script(runtime, f"{web.url}/r"), environment={"http_proxy": proxy.url})
    finally:
        proxy.close()
    assert (done.returncode, done.stdout) == (0, f"{proxy.url}\n"), done.stderr
    assert web.asked == ["/r"] and node.leftovers() == []


# --- the disk ----------------------------------------------------------------------------------------------------


def test_no_scratch_is_a_site_error(node: Node, web: Web) -> None:
    script = node.script(make_runtime("")[1], f"{web.url}/r")
    done = node.run(script, environment={"JOBAGENT_SCRATCH": "/nonexistent:/proc:/usr"})
    assert done.returncode == 222
    assert "/nonexistent is no directory; /proc cannot be written; /usr cannot be written" in done.stderr
    assert web.asked == []


def test_first_usable_scratch_is_taken(node: Node, web: Web) -> None:
    archive, runtime = make_runtime('echo "$JOBAGENT_PILOT_DIR"')
    web.answers["/r"] = send(archive)
    scratch = {"JOBAGENT_SCRATCH": f"/nowhere:{node.scratch}"}
    done = node.run(node.script(runtime, f"{web.url}/r"), environment=scratch)
    assert done.stdout.startswith(f"{node.scratch}/jobagent-pilot.")


@pytest.mark.parametrize("name", ["_CONDOR_SCRATCH_DIR", "SLURM_TMPDIR", "TMPDIR"])
def test_batch_systems_scratch_is_preferred(dash_node: Node, web: Web, name: str) -> None:
    archive, runtime = make_runtime('echo "$JOBAGENT_PILOT_DIR"')
    web.answers["/r"] = send(archive)
    environment = {"JOBAGENT_SCRATCH": "", name: str(dash_node.scratch)}
    done = dash_node.run(dash_node.script(runtime, f"{web.url}/r"), environment=environment)
    assert done.stdout.startswith(f"{dash_node.scratch}/jobagent-pilot."), done.stderr


def test_a_local_disk_is_found_without_any_word(dash_node: Node, web: Web) -> None:
    archive, runtime = make_runtime('echo "$JOBAGENT_PILOT_DIR"')
    web.answers["/r"] = send(archive)
    done = dash_node.run(dash_node.script(runtime, f"{web.url}/r"), environment={"JOBAGENT_SCRATCH": ""})
    assert done.returncode == 0 and "/jobagent-pilot." in done.stdout, done.stderr
    assert not Path(done.stdout.strip()).exists()


@as_root
def test_noexec_scratch_is_refused(node: Node, web: Web) -> None:
    done = node.run(node.script(make_runtime("")[1], f"{web.url}/r"), mount="size=20m,noexec")
    assert done.returncode == 222
    assert f"{node.scratch} is mounted noexec" in done.stderr


@as_root
def test_network_scratch_is_refused(node: Node, web: Web) -> None:
    # a tmpfs stands for NFS: the script is told that tmpfs is a network file system
    script = node.script(make_runtime("")[1], f"{web.url}/r", change=("' nfs ", "' tmpfs nfs "))
    done = node.run(script, mount="size=20m")
    assert done.returncode == 222
    assert f"{node.scratch} is on the network (tmpfs)" in done.stderr


@as_root
@pytest.mark.parametrize("mount", ["size=1m", "size=20m,nr_inodes=20", "size=0k,nr_inodes=2"])
def test_full_scratch_is_refused(node: Node, web: Web, mount: str) -> None:
    done = node.run(node.script(make_runtime("", padding=b"x" * MB)[1], f"{web.url}/r"), mount=mount)
    assert done.returncode == 221, done.stderr
    assert web.asked == []


@as_root
@pytest.mark.parametrize("padding", [os.urandom(8 * MB), bytes(20 * MB)], ids=["fetching", "unpacking"])
def test_disk_full_in_the_middle(node: Node, web: Web, padding: bytes) -> None:
    archive, runtime = make_runtime("echo landed", padding=padding)
    web.answers["/r"] = send(archive)
    script = node.script(runtime, f"{web.url}/r")
    done = node.run(script, mount="size=6m", environment={"JOBAGENT_MIN_DISK_MB": "2"})
    assert (done.returncode, done.stdout) == (221, ""), done.stderr
    assert "cannot remove" not in done.stderr


def test_too_little_memory_is_a_site_error(node: Node, web: Web) -> None:
    script = node.script(make_runtime("")[1], f"{web.url}/r")
    done = node.run(script, environment={"JOBAGENT_MIN_MEMORY_MB": "99999999"})
    assert done.returncode == 226 and "99999999 MB are needed" in done.stderr


def test_wrong_machine_is_a_site_error(node: Node, web: Web) -> None:
    script = node.script(make_runtime("")[1], f"{web.url}/r", change=("RUNTIME_MACHINE='", "RUNTIME_MACHINE='not-"))
    assert node.run(script).returncode == 226


# --- signals, time, leftovers ------------------------------------------------------------------------------------


def test_sigterm_reaches_the_agent_and_everything_goes(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("trap 'echo asked; exit 0' TERM; echo up; sleep 60 & wait")
    web.answers["/r"] = send(archive)
    pilot = node.start(node.script(runtime, f"{web.url}/r"))
    assert pilot.stdout is not None and pilot.stdout.readline() == "up\n"
    pilot.send_signal(signal.SIGTERM)
    out, _ = pilot.communicate(timeout=20)
    assert (pilot.returncode, out) == (143, "asked\n")
    assert node.leftovers() == []


def test_sigterm_while_fetching(node: Node, web: Web) -> None:
    web.answers["/r"] = lambda request: web.closing.wait(20) and None
    pilot = node.start(node.script(make_runtime("")[1], f"{web.url}/r"))
    wait_until(lambda: web.asked)
    pilot.send_signal(signal.SIGTERM)
    pilot.communicate(timeout=20)
    assert pilot.returncode == 143
    assert node.leftovers() == []


def test_deaf_agent_and_its_daemons_are_killed(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("trap '' TERM; setsid sleep 61 & echo up; while :; do sleep 62; done")
    web.answers["/r"] = send(archive)
    pilot = node.start(node.script(runtime, f"{web.url}/r"), environment={"JOBAGENT_GRACE_S": "1"})
    assert pilot.stdout is not None and pilot.stdout.readline() == "up\n"
    pilot.send_signal(signal.SIGTERM)
    pilot.wait(timeout=20)
    assert pilot.returncode == 143
    assert node.leftovers() == []
    pilot.communicate()


def test_daemons_that_outlive_the_agent_are_ended(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("setsid sleep 63 >/dev/null 2>&1 & exit 0")
    web.answers["/r"] = send(archive)
    assert node.run(node.script(runtime, f"{web.url}/r")).returncode == 0
    assert node.leftovers() == []


def test_wall_time_ends_the_agent_in_order(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("trap 'echo asked; exit 0' TERM; sleep 60 & wait")
    web.answers["/r"] = send(archive)
    wall = {"JOBAGENT_WALL_S": "3", "JOBAGENT_GRACE_S": "2"}
    done = node.run(node.script(runtime, f"{web.url}/r"), environment=wall)
    assert (done.returncode, done.stdout) == (0, "asked\n"), done.stderr
    assert "the slot's 3 s are nearly over" in done.stderr
    assert node.leftovers() == []


@pytest.mark.parametrize("locking", ["flock", "pid"])
def test_leftovers_of_a_killed_pilot_are_swept_by_the_next(node: Node, web: Web, locking: str) -> None:
    archive, runtime = make_runtime("setsid sleep 64 & echo up; exec sleep 65")
    web.answers["/r"] = send(archive)
    script = node.script(runtime, f"{web.url}/r")
    if locking == "pid":
        script.write_text(script.read_text().replace("command -v flock", "command -v no-flock"))
    killed, living = node.start(script), node.start(script)
    for pilot in (killed, living):
        assert pilot.stdout is not None and pilot.stdout.readline() == "up\n"
    killed.kill()
    killed.wait()
    assert len(list(node.scratch.iterdir())) == 2
    (node.scratch / f"jobagent-pilot.{node.account.uid}.foreign").mkdir()
    next_script = node.base / "next.sh"
    next_script.write_text(script.read_text())
    web.answers["/r"] = send(b"", status=500)
    done = node.run(next_script)
    assert done.returncode == 232 and "which is gone" in done.stderr
    left = {path.name for path in node.scratch.iterdir()}
    assert len(left) == 2 and f"jobagent-pilot.{node.account.uid}.foreign" in left  # not ours: no marker
    living_directory = next(path for path in node.scratch.iterdir() if not path.name.endswith("foreign"))
    assert (living_directory / ".jobagent-pilot").read_text().split()[1] == str(living.pid)
    (node.scratch / f"jobagent-pilot.{node.account.uid}.foreign").rmdir()
    living.send_signal(signal.SIGTERM)
    living.wait(timeout=20)
    assert node.leftovers() == []
    for pilot in (killed, living):
        pilot.communicate()


# --- what the site says, and what it keeps -----------------------------------------------------------------------


def test_site_file_is_data_not_program(node: Node, web: Web) -> None:
    archive, runtime = make_runtime('echo "$JOBAGENT_SITE"')
    web.answers["/r"] = send(archive)
    conf = node.base / "pilot.conf"
    conf.write_text("# our site\n\nJOBAGENT_SITE=$(touch /tmp/no) `id` 'x\nJOBAGENT_GRACE_S=7")
    done = node.run(node.script(runtime, f"{web.url}/r"), environment={"JOBAGENT_PILOT_CONF": str(conf)})
    assert (done.returncode, done.stdout) == (0, "$(touch /tmp/no) `id` 'x\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("JOBAGENT_SCRACH=/x\n", "unknown name 'JOBAGENT_SCRACH'"),
        ("RUNTIME_SHA256=0\n", "unknown name 'RUNTIME_SHA256'"),
        ("JOBAGENT_FETCH_S=ten\n", "JOBAGENT_FETCH_S is 'ten', expected a whole number"),
        ("reboot\n", "unknown name 'reboot'"),
    ],
)
def test_wrong_site_file_is_named(dash_node: Node, web: Web, text: str, complaint: str) -> None:
    conf = dash_node.base / "pilot.conf"
    conf.write_text(text)
    script = dash_node.script(make_runtime("")[1], f"{web.url}/r")
    done = dash_node.run(script, environment={"JOBAGENT_PILOT_CONF": str(conf)})
    assert done.returncode == 224 and complaint in done.stderr


def test_digests_cannot_come_from_outside(node: Node, web: Web) -> None:
    other, evil = make_runtime("echo evil")
    _, runtime = make_runtime("echo landed")
    web.answers["/r"] = send(other)
    outside = {"RUNTIME_SHA256": evil.sha256, "RUNTIME_SUMS_SHA256": evil.sums_sha256, "RUNTIME_FILES": "3"}
    done = node.run(node.script(runtime, f"{web.url}/r"), environment=outside)
    assert done.returncode in {232, 242} and done.stdout == ""


def test_second_pilot_finds_the_runtime_and_downloads_nothing(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("echo landed")
    web.answers["/r"] = send(archive)
    script, cache = node.script(runtime, f"{web.url}/r"), {"JOBAGENT_CACHE": str(node.home / "cache")}
    for _ in range(2):
        done = node.run(script, environment=cache)
        assert (done.returncode, done.stdout) == (0, "landed\n"), done.stderr
    assert "runtime found in" in done.stderr
    assert web.asked == ["/r"] and node.leftovers() == []


@pytest.mark.parametrize("harm", ["changed", "added", "removed", "linked"])
def test_changed_runtime_in_the_cache_is_never_run(node: Node, web: Web, harm: str) -> None:
    archive, runtime = make_runtime("echo landed")
    web.answers["/r"] = send(archive)
    script, cache = node.script(runtime, f"{web.url}/r"), {"JOBAGENT_CACHE": str(node.home / "cache")}
    assert node.run(script, environment=cache).returncode == 0
    (tree,) = (node.home / "cache" / "pilot").glob("runtime.*")
    if harm == "changed":
        (tree / "bin" / "jobagent").write_text("#!/bin/sh\necho evil\n")
    elif harm == "added":
        (tree / "lib" / "evil.py").write_text("print('evil')")
    elif harm == "removed":
        (tree / "lib" / "padding").unlink()
    else:
        (tree / "bin" / "jobagent").rename(node.home / "j")
        (tree / "bin" / "jobagent").symlink_to(node.home / "j")
    done = node.run(script, environment=cache)
    assert (done.returncode, done.stdout) == (0, "landed\n"), done.stderr
    assert "was changed: replaced" in done.stderr and len(web.asked) == 2
    assert {path.name for path in (node.home / "cache" / "pilot").iterdir()} == {
        ".lock",
        tree.name,
        f"archive.{runtime.sha256}",
    }


def test_many_pilots_on_a_node_download_once(node: Node, web: Web) -> None:
    archive, runtime = make_runtime("echo landed", padding=os.urandom(MB))
    web.answers["/r"] = send(archive)
    script, cache = node.script(runtime, f"{web.url}/r"), {"JOBAGENT_CACHE": str(node.home / "cache")}
    pilots = [node.start(script, environment=cache) for _ in range(6)]
    ended = [pilot.communicate(timeout=40) for pilot in pilots]
    assert [log for out, log in ended if out != "landed\n"] == []
    assert web.asked == ["/r"] and node.leftovers() == []
