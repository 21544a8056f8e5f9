"""Signing keys: kept private, never overwritten, usable from files, certificates and tokens."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from jobagent.central.catalogue.keys import KeyStore, ask_passphrase, read_public
from jobagent.central.catalogue.repository import Repository
from jobagent.errors import SiteError, UsageError
from tests.catalogue_field import entry_for, no_passphrase


@pytest.fixture
def store(tmp_path):
    return KeyStore(tmp_path / "keys", passphrase=no_passphrase)


def user_certificate(directory, name, key):
    """A grid user's certificate and key, as `openssl` or a CA would give them."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A Manager")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(datetime.now(UTC))
    certificate = builder.not_valid_after(datetime.now(UTC) + timedelta(days=1)).sign(key, hashes.SHA256())
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (directory / f"{name}.pem").write_bytes(private)
    (directory / f"{name}.pem").chmod(0o400)
    return directory / f"{name}.crt"


def test_a_new_key_is_readable_by_its_owner_alone(store):
    info = store.new("alice-1")
    assert (store.directory / "alice-1.pem").stat().st_mode & 0o777 == 0o600
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert store.keys()[info.id].home == "file"


def test_a_key_is_never_overwritten(store):
    store.new("alice-1")
    before = (store.directory / "alice-1.pem").read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        store.new("alice-1")
    assert (store.directory / "alice-1.pem").read_bytes() == before


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a\nb", "x" * 70])
def test_a_key_name_is_a_plain_word(store, name):
    with pytest.raises(UsageError, match="key name"):
        store.new(name)


def test_a_private_key_that_others_may_read_is_refused(store):
    info = store.new("alice-1")
    (store.directory / "alice-1.pem").chmod(0o640)
    with pytest.raises(SiteError, match=r"mode 640.*chmod 600"):
        store.signers([info.id])


def test_an_encrypted_key_needs_its_passphrase(tmp_path):
    info = KeyStore(tmp_path, passphrase=lambda name: b"correct horse").new("alice-1")
    assert info.home == "encrypted file"
    assert b"ENCRYPTED" in (tmp_path / "alice-1.pem").read_bytes()
    (signer,) = KeyStore(tmp_path, passphrase=lambda name: b"correct horse").signers([info.id])
    assert signer.public_key == info.key
    for wrong in (b"wrong", None):
        with pytest.raises(UsageError, match=r"wrong passphrase"):
            KeyStore(tmp_path, passphrase=lambda name, given=wrong: given).signers([info.id])


def test_public_halves_are_listed_without_any_passphrase(tmp_path):
    def never(name):
        raise AssertionError("asked for a passphrase")

    info = KeyStore(tmp_path, passphrase=lambda name: b"secret").new("alice-1")
    assert list(KeyStore(tmp_path, passphrase=never).keys()) == [info.id]


def test_the_passphrase_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("JOBAGENT_PASSPHRASE", "from the environment")
    assert ask_passphrase("x") == b"from the environment"


def test_without_terminal_and_variable_there_is_no_passphrase(monkeypatch):
    monkeypatch.delenv("JOBAGENT_PASSPHRASE", raising=False)
    assert ask_passphrase("x") is None


@pytest.mark.parametrize(
    "make_key",
    [lambda: rsa.generate_private_key(65537, 2048), lambda: ec.generate_private_key(ec.SECP256R1())],
    ids=["rsa", "ecdsa"],
)
def test_a_vo_signs_with_the_key_of_an_x509_certificate(tmp_path, make_key):
    keys = KeyStore(tmp_path / "keys", passphrase=no_passphrase)
    repository, _ = Repository.create(tmp_path / "catalogue", keys)
    certificate = user_certificate(tmp_path / "keys", "alice-usercert", make_key())
    repository.add_vo("alice", [read_public(certificate)])
    assert repository.register([entry_for("ROOT")]).is_published
    assert [str(p.id) for p in repository.packages()] == ["VO_ALICE@ROOT::1"]


def test_a_private_key_without_public_half_beside_it_is_known_by_itself(store):
    info = store.new("alice-1")
    (store.directory / "alice-1.pub").unlink()
    assert store.named("alice-1").id == info.id


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_file_that_is_no_key_is_named(store, content):
    store.directory.mkdir()
    (store.directory / "x.pub").write_bytes(content)
    with pytest.raises(UsageError, match="neither a public key nor a certificate"):
        store.keys()


def test_a_missing_directory_is_one_line(store):
    with pytest.raises(UsageError, match="no directory of keys"):
        store.keys()


def test_keys_are_found_by_name_and_by_the_start_of_their_id(store):
    info = store.new("alice-1")
    store.new("alice-2")
    assert store.named("alice-1").id == store.named(info.id[:10]).id == info.id
    with pytest.raises(UsageError, match="0 keys are called"):
        store.named("bob")


def test_only_keys_at_hand_sign(store):
    info = store.new("alice-1")
    (store.directory / "alice-1.pem").unlink()
    assert store.signers([info.id, "0" * 64]) == []


SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


def softhsm_or_skip():
    if SOFTHSM.exists() and shutil.which("softhsm2-util"):
        return pytest.importorskip("pkcs11")
    if os.environ.get("CI"):
        pytest.fail("softhsm2 is not installed")
    pytest.skip("softhsm2 is not installed")


def test_a_vo_signs_with_a_key_that_stays_on_its_token(tmp_path):
    """In a process of its own: the PKCS#11 library reads its configuration once."""
    softhsm_or_skip()
    (tmp_path / "tokens").mkdir()
    configuration = tmp_path / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    environment = {**os.environ, "SOFTHSM2_CONF": str(configuration), "PYKCS11LIB": str(SOFTHSM)}
    initialise = ["softhsm2-util", "--init-token", "--free", "--label", "alice", "--pin", "1234", "--so-pin", "1234"]
    subprocess.run(initialise, env=environment, check=True, capture_output=True, timeout=30)
    program = f"""
import os, pkcs11
from pathlib import Path
from pkcs11.util.ec import encode_named_curve_parameters
token = pkcs11.lib(os.environ["PYKCS11LIB"]).get_token(token_label="alice")
with token.open(user_pin="1234", rw=True) as session:
    parameters = session.create_domain_parameters(
        pkcs11.KeyType.EC, {{pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}}, local=True)
    parameters.generate_keypair(store=True, id=bytes([2]))
from jobagent.central.catalogue.keys import KeyStore
from jobagent.central.catalogue.repository import Repository
from tests.catalogue_field import entry_for
base = Path({str(tmp_path)!r})
keys = KeyStore(base / "keys", passphrase=lambda name: b"1234" if "token" in name else None)
repository, _ = Repository.create(base / "catalogue", keys)
info = keys.adopt_token("alice-token", slot=2, label="alice")
repository.add_vo("alice", [info.key])
print(repository.register([entry_for("ROOT")]).is_published, sorted(p.suffix for p in keys.directory.glob("alice*")))
"""
    done = subprocess.run(
        [os.sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True ['.pub', '.uri']\n", done.stderr[-2000:]
