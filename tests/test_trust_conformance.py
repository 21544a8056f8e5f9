"""The entry point for the public TUF conformance suite keeps the suite's command-line contract."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from tuf.api.metadata import TargetFile

from tests.catalogue_field import entry_for, field_in

CONTENT = b"target file contents"
NAME = "alice/0000/path/a/target.txt"


@pytest.fixture
def place(tmp_path):
    """A catalogue with one file as TUF serves it: by name with its digest before it."""
    with field_in(tmp_path / "field") as made:
        digest = hashlib.sha256(CONTENT).hexdigest()
        put_target(made, len(CONTENT), digest)
        made.server.answers[f"targets/alice/0000/path/a/{digest}.target.txt"] = CONTENT
        yield made


def put_target(place, length, digest):
    with place.repository.shelf.lock():
        role = place.repository._open(place.repository._ceremony(), "alice")
        role.signed.targets[NAME] = TargetFile(length, {"sha256": digest}, NAME)
        place.repository._submit({"alice": role})


@pytest.fixture
def client(place, tmp_path):
    """Run the client in a process of its own, as the suite does; `init` is done."""

    def call(command, *words, url=place.server.url + "metadata/"):
        options = ["--metadata-url", url, "--metadata-dir", str(tmp_path / "metadata")]
        if command == "download":
            options += ["--target-dir", str(tmp_path / "files"), "--target-base-url", place.server.url + "targets/"]
            options += [word for name in words for word in ("--target-name", name)]
        program = [sys.executable, "-m", "jobagent_catalogue.conformance"]
        return subprocess.run([*program, *options, command], capture_output=True, text=True, timeout=60, check=False)

    program = [sys.executable, "-m", "jobagent_catalogue.conformance", "--metadata-dir", str(tmp_path / "metadata")]
    subprocess.run([*program, "init", str(place.root)], check=True, timeout=60)
    assert place.server.requests == []
    return call


def trusted(tmp_path):
    return {
        path.stem: json.loads(path.read_bytes())["signed"]["version"]
        for path in (tmp_path / "metadata").glob("*.json")
    }


def files(tmp_path):
    return [p.read_bytes() for p in (tmp_path / "files").rglob("*") if p.is_file()]


def test_init_asks_nobody_and_refresh_keeps_unversioned_names(client, place, tmp_path):
    assert trusted(tmp_path) == {"root": 1}
    assert client("refresh").returncode == 0
    assert set(trusted(tmp_path)) == {"root", "timestamp", "snapshot", "targets"}
    assert place.server.requests[:2] == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_refresh_follows_the_repository_and_refuses_a_rollback(client, place, tmp_path):
    assert client("refresh").returncode == 0
    old = place.metadata("timestamp.json")
    place.repository.register([entry_for("ROOT")])
    assert client("refresh").returncode == 0
    seen = trusted(tmp_path)
    place.server.answers["metadata/timestamp.json"] = old
    refused = client("refresh")
    assert refused.returncode == 1
    assert "BadVersionNumberError" in refused.stderr
    assert trusted(tmp_path) == seen


def test_download_stores_the_file_once_and_does_not_fetch_it_again(client, place, tmp_path):
    assert client("download", NAME).returncode == 0, client("download", NAME).stderr
    assert files(tmp_path) == [CONTENT]
    place.server.requests.clear()
    assert client("download", NAME, NAME).returncode == 0
    assert not any(path.startswith("targets/") for path in place.server.requests)


def test_download_of_a_replaced_or_unknown_file_fails_and_stores_nothing(client, place, tmp_path):
    (path,) = (p for p in place.server.answers if p.startswith("targets/"))
    place.server.answers[path] = b"x" * len(CONTENT)
    assert client("download", NAME).returncode == 1
    assert client("download", "alice/none").returncode == 1
    assert files(tmp_path) == []


def test_a_server_that_is_not_there_is_exit_code_1_with_a_reason(client, place):
    place.server.stop()
    failed = client("refresh")
    assert failed.returncode == 1
    assert "Connection refused" in failed.stderr
    assert "Traceback" not in failed.stderr
