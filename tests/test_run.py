"""`jobagent run` on a real small grid: services, swarm, catalogue and payloads are all the real ones."""

import functools
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jobagent.testing.world import World

pytestmark = pytest.mark.swarm

HELLO = "#!/bin/sh\necho hello from ${HELLO_VERSION} in $HELLO_ROOT with $(data)\n"
BULK = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("world"), vos=("alice", "cms"))
    data = world.publish("Data", {"bin/data": "#!/bin/sh\necho data\n", "share/bulk": BULK})
    world.publish("Hello", {"bin/hello": HELLO}, "--depends", data, version="v1")
    world.publish("Hello", {"bin/hello": HELLO}, "--depends", data, version="v2")
    world.publish("Old", {"bin/old": "old"}, "--platform", "Linux-m68k")
    with world.serving():
        yield world


@pytest.fixture
def node(world):
    return world.node()


def jdl(directory, packages='"Hello::v1"', executable="hello", **fields):
    lines = [f'Executable = "{executable}";', f"Packages = {{{packages}}};"]
    lines += [f"{key} = {value};" for key, value in fields.items()]
    path = directory / "job.jdl"
    path.write_text("\n".join(lines) + "\n")
    return path


def script(directory, text):
    path = directory / "payload.sh"
    path.write_text("#!/bin/sh\n" + text)
    return "payload.sh"


def run(node, job, tmp_path, *words):
    done = node.call("run", job, "--output", tmp_path / "out", "--json", tmp_path / "report.json", *words)
    report = json.loads((tmp_path / "report.json").read_text()) if (tmp_path / "report.json").exists() else {}
    assert "Traceback" not in done.stderr
    assert node.leftovers() == []
    return done, report


def error_line(done):
    lines = [line for line in done.stderr.splitlines() if line.startswith("jobagent: ") and "Error" not in line[:9]]
    return lines[-1]


def test_the_payload_finds_its_packages_and_nothing_is_left(node, tmp_path):
    done, report = run(node, jdl(tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hello from v1 in ")
    assert done.stdout.rstrip().endswith("with data")
    assert [p["package"] for p in report["packages"]] == ["VO_ALICE@Data::1", "VO_ALICE@Hello::v1"]
    assert report["traffic"]["seeder_bytes"] + report["traffic"]["neighbour_bytes"] > len(BULK)
    assert report["traffic"]["web_bytes"] == 0
    assert report["error"] is None and report["payload"]["exit_code"] == 0


def test_without_version_the_newest_is_taken_and_said(node, tmp_path):
    done, report = run(node, jdl(tmp_path, '"VO_ALICE@Hello"'), tmp_path)
    assert report["packages"][-1]["package"] == "VO_ALICE@Hello::v2"
    assert "VO_ALICE@Hello::v2: newest released version" in done.stderr


def test_the_exit_code_is_the_payloads_and_outputs_come_back(node, tmp_path):
    name = script(tmp_path, "echo result > result.txt; echo noise > noise.txt; exit 42\n")
    job = jdl(tmp_path, executable=name, OutputFile='{"result.txt"}')
    done, report = run(node, job, tmp_path)
    assert done.returncode == 42
    assert (tmp_path / "out" / "result.txt").read_text() == "result\n"
    assert not (tmp_path / "out" / "noise.txt").exists()
    assert report["payload"]["outputs"] == ["result.txt"]


@pytest.mark.parametrize("sandbox", ["auto", "none"])
def test_a_payload_killed_by_a_signal_gives_the_shells_code(world, tmp_path, sandbox):
    node = world.node(sections={"job": f'sandbox = "{sandbox}"\n'})
    done, report = run(node, jdl(tmp_path, executable=script(tmp_path, "kill -KILL $$\n")), tmp_path)
    assert done.returncode == 128 + signal.SIGKILL
    # bubblewrap tells a signal as a shell does, by an exit code
    assert report["payload"]["signal"] or report["payload"]["exit_code"] == 128 + signal.SIGKILL


def test_validation_decides_over_a_payload_that_said_nothing_wrong(node, tmp_path):
    (tmp_path / "check.sh").write_text("#!/bin/sh\ngrep -q good result\n")
    job = jdl(tmp_path, executable=script(tmp_path, "echo bad > result\n"), Validationcommand='"check.sh"')
    done, _ = run(node, job, tmp_path)
    assert (done.returncode, "ERROR_V:" in done.stderr) == (217, True)
    job = jdl(tmp_path, executable=script(tmp_path, "echo good > result\n"), Validationcommand='"absent.sh"')
    done, _ = run(node, job, tmp_path)
    assert (done.returncode, "ERROR_VN:" in done.stderr) == (217, True)


def test_the_jobs_ttl_ends_it(node, tmp_path):
    done, _ = run(node, jdl(tmp_path, executable=script(tmp_path, "sleep 60\n"), TTL="1"), tmp_path)
    assert done.returncode == 218
    assert "wall limit of 1 s" in done.stderr


def test_the_payload_sees_the_jobs_variables_and_not_the_agents(node, tmp_path):
    name = script(tmp_path, "env > env.txt\n")
    job = jdl(tmp_path, executable=name, JDLVariables='{"LHCPeriod"}', LHCPeriod='"LHC26a"')
    run(node, job, tmp_path)
    variables = dict(line.split("=", 1) for line in (tmp_path / "out" / "env.txt").read_text().splitlines())
    assert variables["ALIEN_JDL_LHCPERIOD"] == "LHC26a"
    assert variables["ALIEN_PACKAGES"] == "VO_ALICE@Data::1 VO_ALICE@Hello::v1"
    assert not [name for name in variables if name.startswith(("JOBAGENT", "PYTHON"))]


@pytest.mark.acceptance(29)
@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ('"Hallo::v1"', 211, "nearest names: Hello"),
        ('"Hello::v9"', 211, "versions there are: v"),
        ('"VO_LHCB@Hello"', 211, "has the VOs: alice, cms"),
        ('"Old::1"', 215, "it is for Linux-m68k"),
        ('"Hello::v1", "Hello::v2"', 212, "cannot both be used"),
        ('"He llo"', 214, "is not of the form"),
        ('"../etc"', 214, "is not of the form"),
    ],
)
def test_a_wrong_package_is_one_line_with_its_own_code(node, tmp_path, packages, code, says):
    done, report = run(node, jdl(tmp_path, packages), tmp_path)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert report["error"]["exit_code"] == code


@pytest.mark.acceptance(29)
def test_a_malformed_jdl_is_refused_with_line_and_column(node, tmp_path):
    path = tmp_path / "job.jdl"
    path.write_text('Executable = "hello";\nPackages = {"Hello::v1";\n')
    done, _ = run(node, path, tmp_path)
    assert done.returncode == 214
    assert "line 2, column " in done.stderr


def test_a_submit_file_and_a_classad_on_stdin_run_too(node, tmp_path):
    submit = tmp_path / "job.sub"
    submit.write_text('executable = hello\nMY.Packages = {"VO_ALICE@Hello::v1"}\nqueue\n')
    done, _ = run(node, submit, tmp_path)
    assert (done.returncode, done.stdout[:13]) == (0, "hello from v1"), done.stderr
    ad = '[ Cmd = "hello"; Packages = "VO_ALICE@Hello::v2"; MyType = "Job" ]'
    done = node.call("run", "-", "--output", tmp_path, input=ad)
    assert (done.returncode, done.stdout[:13]) == (0, "hello from v2"), done.stderr


def test_no_network_is_a_supply_error(world, tmp_path):
    node = world.node(catalogue="http://127.0.0.1:9")
    done, _ = run(node, jdl(tmp_path), tmp_path)
    assert done.returncode == 231
    assert "127.0.0.1:9" in done.stderr


@pytest.mark.acceptance(27)
def test_an_unusable_scratch_is_a_site_error(world, tmp_path):
    node = world.node()
    node.configuration.write_text(node.configuration.read_text().replace(str(node.scratch), "/proc"))
    done = node.call("run", jdl(tmp_path))
    assert (done.returncode, "set [site] scratch" in done.stderr) == (222, True)


@pytest.mark.acceptance(1, 27)
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small tmpfs")
def test_a_full_disk_is_found_before_the_download(world, tmp_path):
    node = world.node()
    inner = f'mount -t tmpfs -o size=12m none {node.scratch} && exec "$@" && ls {node.scratch}'
    words = [sys.executable, "-m", "jobagent", "--config", str(node.configuration), "run", str(jdl(tmp_path))]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner, "sh", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 221, done.stderr
    assert "VO_ALICE@" in done.stderr and " MB" in done.stderr


def static_server(directory):
    handler = functools.partial(QuietHandler, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def quick_fallback(world, server):
    return world.node(
        "[swarm]\nno_peer_timeout_s = 1\nweb_seed_after_s = 0\n", catalogue=f"http://127.0.0.1:{server.server_port}"
    )


@pytest.mark.acceptance(10)
def test_with_seeder_and_tracker_down_the_alternate_pfn_delivers(world, tmp_path):
    server = static_server(world.catalogue)
    try:
        done, report = run(quick_fallback(world, server), jdl(tmp_path), tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert report["traffic"]["web_bytes"] > len(BULK)
    for package in ("Data::1", "Hello::v1"):
        assert done.stderr.count(f"jobagent: warning: VO_ALICE@{package}: transport swarm failed") == 1


def test_corrupted_data_is_refused_and_nothing_installed(world, tmp_path):
    copy = tmp_path / "catalogue"
    shutil.copytree(world.catalogue, copy)
    for archive in copy.glob("archives/*/*"):
        data = bytearray(archive.read_bytes())
        data[len(data) // 2] ^= 1
        archive.unlink()
        archive.write_bytes(data)
    server = static_server(copy)
    try:
        done, _ = run(quick_fallback(world, server), jdl(tmp_path), tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 242, done.stderr


def started(node, job, tmp_path):
    """Start a job whose payload says when it runs."""
    process = node.start("run", job, "--output", tmp_path / "out", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.acceptance(32)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_payload_then_cleans_up(node, tmp_path, number):
    name = script(tmp_path, "trap 'echo stopped; exit 0' TERM; echo running; while :; do sleep 0.05; done\n")
    process = started(node, jdl(tmp_path, executable=name), tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert out == "stopped\n"
    assert node.leftovers() == []


@pytest.mark.acceptance(5)
def test_kill_9_of_the_agent_leaves_neither_process_nor_file(node, tmp_path):
    mark = tmp_path / "pid"
    name = script(tmp_path, f"echo $$ > {mark}; echo running; sleep 300\n")
    process = started(node, jdl(tmp_path, executable=name), tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    deadline = time.monotonic() + 10
    while node.leftovers() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert node.leftovers() == []


def test_two_runs_at_once_in_one_scratch_do_not_disturb_each_other(node, tmp_path):
    jobs = []
    for number in (1, 2):
        place = tmp_path / str(number)
        place.mkdir()
        jobs.append(node.start("run", jdl(place), "--output", place, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for job in jobs:
        out, err = job.communicate(timeout=60)
        assert (job.returncode, out[:13]) == (0, "hello from v1"), err
    assert node.leftovers() == []


@pytest.mark.acceptance(34)
def test_a_port_range_used_up_by_others_still_downloads(world, tmp_path):
    node = world.node()
    with socket.socket() as other:
        other.bind((node.address, 0))
        other.listen()
        port = other.getsockname()[1]
        node.configuration.write_text(node.configuration.read_text() + f'[swarm]\nports = "{port}"\n')
        done, _ = run(node, jdl(tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr


def test_env_and_shell_show_the_packages(node):
    done = node.call("shell", "VO_ALICE@Hello::v1", "-c", "hello; exit 3")
    assert (done.returncode, done.stdout[:13]) == (3, "hello from v1"), done.stderr
    done = node.call("env", "-", "--json", input='Executable = "hello";\nPackages = {"Hello::v1"};\n')
    assert json.loads(done.stdout)["HELLO_VERSION"] == "v1", done.stderr
    done = node.call("env", "--json", "-", "v2", input='Executable = "hello";\nPackages = {"Hello::$1"};\n')
    assert json.loads(done.stdout)["HELLO_VERSION"] == "v2", done.stderr
    done = node.call("env", "--json", "Hello::v1", "Data::1")
    assert json.loads(done.stdout)["ALIEN_PACKAGES"] == "VO_ALICE@Data::1 VO_ALICE@Hello::v1", done.stderr
    assert node.leftovers() == []


def test_the_kept_root_is_needed_to_trust_anything(world, tmp_path):
    node = world.node()
    text = node.configuration.read_text()
    node.configuration.write_text("\n".join(line for line in text.splitlines() if not line.startswith("root")))
    done = node.call("run", jdl(tmp_path))
    assert done.returncode in {224, 241}, done.stderr
    assert Path(world.root).exists()


def test_a_version_published_a_moment_ago_is_found(world, tmp_path):
    node = world.node(f'[plugins]\nenable = ["sharedcache"]\n[sharedcache]\nroot = "{tmp_path / "cache"}"\n')
    done, _ = run(node, jdl(tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    world.publish(
        "Hello", {"bin/hello": HELLO.replace("hello from", "new from")}, "--depends", "Data::1", version="v3"
    )
    done, _ = run(node, jdl(tmp_path, '"Hello::v3"'), tmp_path)
    assert (done.returncode, done.stdout[:11]) == (0, "new from v3"), done.stderr


@pytest.mark.acceptance(10)
def test_a_catalogue_of_local_files_is_used_at_once(world, tmp_path):
    node = world.node(catalogue=world.catalogue.as_uri())
    done, report = run(node, jdl(tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    assert report["traffic"]["web_bytes"] > len(BULK)
    assert report["seconds"]["packages"] < 10  # the swarm's patience is 15 s
    assert "warning" not in done.stderr


@pytest.mark.acceptance(10)
def test_beside_a_tracker_that_is_down_local_files_are_used_soon(world, tmp_path):
    node = world.node('[swarm]\ntrackers = ["http://127.0.0.1:9/announce"]\n', catalogue=world.catalogue.as_uri())
    done, report = run(node, jdl(tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    assert report["traffic"]["web_bytes"] > len(BULK)
    assert report["seconds"]["packages"] < 12
