"""The catalogue on the command line: for its managers, and for everybody who looks something up."""

from __future__ import annotations

import json
import shutil

import pytest

from jobagent.cli.main import main
from jobagent.cli.show import provenance_rows
from jobagent.errors import AlreadyPublished, JobError, ManagerError, UnknownPackage, UsageError
from jobagent.model import PackageId, PackageState
from tests.catalogue_field import draft, entry_for, field_in


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A catalogue whose manager has set both variables."""
    with field_in(tmp_path / "field") as made:
        monkeypatch.setenv("JOBAGENT_CATALOGUE", str(made.catalogue))
        monkeypatch.setenv("JOBAGENT_KEYS", str(made.keys.directory))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("JOBAGENT_CONFIG", raising=False)
        monkeypatch.delenv("JOBAGENT_PASSPHRASE", raising=False)
        yield made


@pytest.fixture
def run(capsys, place):
    """Run a command; return exit code, output and error lines."""

    def call(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def source(place):
    return "--catalogue", place.server.url, "--root", place.root


def test_a_catalogue_from_nothing_to_a_listed_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JOBAGENT_KEYS", str(tmp_path / "keys"))
    directory = tmp_path / "catalogue"
    assert main(["catalogue", "init", str(directory)]) == 0
    told = capsys.readouterr().out
    assert "1.root.json, sha256 " in told
    monkeypatch.setenv("JOBAGENT_CATALOGUE", str(directory))
    assert main(["vo", "add", "VO_ALICE"]) == 0
    assert (tmp_path / "keys" / "alice-1.pem").exists()
    assert main(["vo", "list"]) == 0
    assert "alice: 1 of 1 keys" in capsys.readouterr().out
    assert main(["catalogue", "check"]) == 0
    assert main(["list", "--catalogue", str(directory)]) == 0
    assert "no packages" in capsys.readouterr().out


def test_list_shows_every_state_and_json_is_for_scripts(run, place):
    place.repository.register(
        [entry_for("ROOT", "v6", description="Analysis [bold]framework[/]"), entry_for("Pythia", namespace="bob")]
    )
    place.repository.set_state(PackageId("alice", "ROOT", "v6"), PackageState.BANNED, reason="crashes")
    code, out, _ = run("list", *source(place))
    assert code == 0
    assert "VO_ALICE@ROOT::v6" in out
    assert "banned" in out
    assert "Analysis [bold]framework[/] (crashes)" in out
    _, out, _ = run("list", "--vo", "VO_BOB", "--json", *source(place))
    assert [p["package"] for p in json.loads(out)] == ["VO_BOB@Pythia::1"]
    _, out, _ = run("list", "roo*", "--released", "--json", *source(place))
    assert json.loads(out) == []


def test_list_of_a_server_that_is_down_is_one_line(run, place):
    place.server.stop()
    code, out, err = run("list", *source(place))
    assert code == 231
    assert out == ""
    assert err.count("\n") == 1
    assert "Connection refused" in err


def test_show_tells_what_is_signed_and_where_it_came_from(run, place):
    place.repository.publish([draft(place.base, "ROOT", "v6", licence="LGPL-2.1-or-later")])
    code, out, _ = run("show", "VO_ALICE@ROOT", *source(place))
    assert code == 0
    assert "LGPL-2.1-or-later" in out
    assert "provenance   cannot be shown: not JSON" in out
    _, out, _ = run("show", "VO_ALICE@ROOT", "--json", *source(place))
    (shown,) = json.loads(out)
    assert shown["version"] == "v6"
    assert shown["archive"]["infohash_v2"]
    assert run("show", "VO_ALICE@Root", *source(place))[0] == UnknownPackage.exit_code
    code, _, err = run("show", "ROOT", *source(place))
    assert code == UsageError.exit_code
    assert "names no owner" in err


def test_provenance_of_a_cyclonedx_document_is_summed_up():
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {"timestamp": "2026-01-01T00:00:00Z", "properties": [{"name": "build host", "value": "b01"}]},
        "components": [
            {"name": f"lib{n}", "version": "1", "licenses": [{"license": {"id": "MIT"}}]} for n in range(20)
        ],
    }
    rows = provenance_rows(document)
    assert ("provenance", "CycloneDX 1.6") in rows
    assert ("", "build host = b01") in rows
    assert ("contains", "lib0 1 (MIT)") in rows
    assert rows[-1] == ("", "and 8 more, see --sbom")


@pytest.mark.parametrize(
    "document",
    [
        {"components": 7, "metadata": []},
        {"components": [1, None, {"name": ["x"], "licenses": {"a": 1}}], "metadata": {"component": "x"}},
        {"bomFormat": "\x1b[2J\n", "specVersion": {"deep": {}}},
    ],
)
def test_provenance_of_any_shape_is_shown_on_printable_lines(document):
    for row in provenance_rows(document):
        assert all(cell.isprintable() for cell in row)


def test_dependencies_are_a_tree_with_repeats_closed(run, place):
    python, geant = entry_for("Python"), entry_for("G4", dependencies=(PackageId("alice", "Python", "1"),))
    root = entry_for("ROOT", dependencies=(geant.id, python.id))
    place.repository.register([python, geant, root])
    code, out, _ = run("dependencies", "VO_ALICE@ROOT", "--platform", "Linux-x86_64", *source(place))
    assert code == 0
    assert out.splitlines() == [
        "VO_ALICE@ROOT::1  10 B",
        "├─ VO_ALICE@G4::1  10 B",
        "│  └─ VO_ALICE@Python::1  10 B",
        "└─ VO_ALICE@Python::1  10 B",
        "3 packages, 30 B to download",
    ]


def test_whereis_names_web_servers_swarm_and_cache(run, place):
    made = draft(place.base, "ROOT")
    place.repository.publish([made])
    code, out, _ = run("whereis", "VO_ALICE@ROOT", *source(place))
    assert code == 0
    assert f"web           {place.server.url}archives/{made.package.key}/ROOT-1.tar.zst" in out
    assert f"xt=urn:btmh:1220{made.package.archive.infohash_v2}" in out
    assert "on this node  no" in out


def test_get_downloads_verifies_and_never_overwrites(run, place, tmp_path, monkeypatch):
    made = draft(place.base, "ROOT")
    place.repository.publish([made])
    config = tmp_path / "jobagent.toml"
    config.write_text('[plugins]\ndisable = ["swarm"]\n')
    target = tmp_path / "here.tar.zst"
    words = ("--config", config, "get", "VO_ALICE@ROOT", "--platform", "Linux-x86_64", "-o", target, *source(place))
    code, out, err = run(*words)
    assert (code, target.read_bytes()) == (0, made.archive.read_bytes()), err
    assert "verified" in out
    assert run(*words)[0] == UsageError.exit_code
    target.unlink()
    place.server.answers[f"archives/{made.package.key}/ROOT-1.tar.zst"] = b"x" * made.package.archive.size_bytes
    code, _, err = run(*words)
    assert code in {232, 242}
    assert not target.exists()
    assert [p.name for p in tmp_path.iterdir() if "here" in p.name] == []


def test_withdraw_and_ban_are_signed_and_can_be_undone(run, place):
    place.repository.register([entry_for("ROOT", "v6")])
    assert run("withdraw", "VO_ALICE@ROOT::v6", "--reason", "old")[0] == 0
    assert next(place.repository.packages()).state is PackageState.WITHDRAWN
    code, _, err = run("ban", "VO_ALICE@ROOT::v6")
    assert code == UsageError.exit_code
    assert "needs a reason" in err
    assert run("ban", "VO_ALICE@ROOT::v6", "--reason", "crashes")[0] == 0
    assert next(place.repository.packages()).state is PackageState.BANNED
    assert run("ban", "VO_ALICE@ROOT::v6", "--undo")[0] == 0
    assert next(place.repository.packages()).state is PackageState.RELEASED
    assert run("ban", "VO_ALICE@ROOT::v9", "--reason", "x")[0] == UnknownPackage.exit_code
    assert run("ban", "ROOT", "--reason", "x")[0] == 214


def test_two_managers_sign_at_the_command_line(run, place, monkeypatch):
    first = place.keys.directory
    assert run("keys", "new", "alice-2")[0] == 0
    second = first.with_name("second")
    shutil.copytree(first, second)
    assert run("vo", "rotate", "alice", "--key", "alice-1", "--key", "alice-2", "--threshold", "2")[0] == 0
    (first / "alice-2.pem").unlink()
    (second / "alice-1.pem").unlink()
    place.repository.register([entry_for("ROOT", namespace="bob")])
    assert run("catalogue", "sign")[1] == "nothing waits for signatures\n"
    place.repository = type(place.repository)(place.catalogue, type(place.keys)(first))
    place.repository.register([entry_for("ROOT")])
    monkeypatch.setenv("JOBAGENT_KEYS", str(second))
    code, out, err = run("catalogue", "sign")
    assert (code, "aaaaaaaaaaaaaaaa… 10 bytes" in out) == (UsageError.exit_code, True)
    assert "nobody is there to agree to that; read it, then give --yes" in err
    code, out, _ = run("catalogue", "sign", "--yes")
    assert code == 0
    assert "alice v3 has 1 of 2 signatures" in out
    assert "/ROOT/1/Linux-x86_64 sha256 aaaaaaaaaaaaaaaa… 10 bytes" in out
    assert "published" in out
    assert [str(p.id) for p in place.repository.packages("alice")] == ["VO_ALICE@ROOT::1"]


def test_keys_are_rotated_and_revoked_at_the_command_line(run, place):
    for name in ("alice-2", "root-4", "root-5", "root-6", "online-2"):
        assert run("keys", "new", name, "--no-passphrase")[0] == 0
    assert run("vo", "rotate", "alice", "--key", "alice-1", "--key", "alice-2")[0] == 0
    assert run("vo", "revoke", "alice", "--key", "alice-1")[0] == 0
    assert [k.keyid for k in place.repository.vo_keys("alice")[0]] == [place.keys.named("alice-2").id]
    code, _, err = run("vo", "revoke", "alice", "--key", "alice-1")
    assert code == UsageError.exit_code
    assert "0 keys of VO alice" in err
    roots = [word for n in (4, 5, 6) for word in ("--key", f"root-{n}")]
    assert run("catalogue", "rotate", "--role", "root", *roots)[0] == 0
    assert run("catalogue", "rotate", "--role", "online", "--key", "online-2")[0] == 0
    assert run("catalogue", "renew", "--role", "alice")[0] == 0
    assert run("catalogue", "refresh", "--force")[0] == 0
    assert run("catalogue", "check", "--deep")[0] == 0
    assert place.client().namespaces() == ["alice", "bob"]
    assert run("vo", "revoke", "VO_ALICE")[0] == 0
    assert place.client(state="new").namespaces() == ["bob"]


def test_keys_show_lists_names_ids_and_where_private_halves_are(run, place):
    _, out, _ = run("keys", "show", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["alice-1"]["id"] == place.keys.named("alice-1").id
    assert {row["private"] for row in rows.values()} == {"file"}
    for what in (place.keys.directory / "alice-1.pub", place.keys.directory):
        _, out, _ = run("keys", "show", what)
        assert place.keys.named("alice-1").id in out


def test_signatures_that_suffice_ask_nobody_for_more(run, place):
    (place.keys.directory / "online.pem").unlink()
    for number in (4, 5, 6):
        run("keys", "new", f"root-{number}", "--no-passphrase")
    roots = [word for n in (4, 5, 6) for word in ("--key", f"root-{n}")]
    _, out, _ = run("catalogue", "rotate", "--role", "root", *roots)
    assert "waits: root v2 has 3 of 2 signatures; that is enough\n" in out
    assert "waits for the holder of the online key: jobagent catalogue refresh" in out


def test_check_fails_where_readers_suffer(run, place):
    place.repository.register([entry_for("ROOT")])
    code, out, _ = run("catalogue", "check")
    assert code == 1
    assert "error: VO_ALICE@ROOT::1: archives/" in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("vo", "rotate", "carol", "--key", "alice-1"), UsageError.exit_code),
        (("vo", "rotate", "alice"), UsageError.exit_code),
        (("vo", "add", "targets"), UsageError.exit_code),
        (("catalogue", "renew", "--role", "carol"), ManagerError.exit_code),
        (("catalogue", "discard", "--role", "alice"), UsageError.exit_code),
        (("catalogue", "refresh", "--force", "--keys", "/nonexistent"), UsageError.exit_code),
        (("catalogue", "check", "/nonexistent"), 1),
        (("list", "--catalogue", "/nonexistent"), UsageError.exit_code),
        (("list",), 224),
    ],
)
def test_mistakes_are_one_line_with_their_own_exit_code(run, words, code):
    found, out, err = run(*words)
    assert found == code, err
    assert (out + err).count("\n") == 1
    assert "Traceback" not in err


def test_publishing_twice_has_its_own_exit_code(place):
    place.repository.register([entry_for("ROOT")])
    with pytest.raises(AlreadyPublished) as caught:
        place.repository.register([entry_for("ROOT")])
    assert caught.value.exit_code == 203
    assert not isinstance(caught.value, JobError)
