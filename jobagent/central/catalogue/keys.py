"""Signing keys as files of one directory, kept apart from the catalogue that they sign.

A key `NAME` is a pair: the public half `NAME.pub` (PEM SubjectPublicKeyInfo, or an X.509 certificate `NAME.crt`),
and the private half `NAME.pem` (PKCS#8, perhaps with a passphrase; a grid user's `userkey.pem` will do) or
`NAME.uri` (the address of a key that does not leave its token, e.g. `hsm:2?label=YubiKey`).  A directory with public
halves only is what a manager hands to others.

Knows nothing of roles and metadata.
"""

from __future__ import annotations

import getpass
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import CryptoSigner, HSMSigner, Signer, SSlibKey

from jobagent import durable
from jobagent.errors import SiteError, UsageError

PASSPHRASE_VARIABLE = "JOBAGENT_PASSPHRASE"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

Passphrase = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key of a directory.  `home` is where its private half is: `file`, `encrypted file`, `token` or empty."""

    name: str
    key: SSlibKey
    home: str

    @property
    def id(self) -> str:
        """TUF's key id: the sha256 of the public half."""
        return str(self.key.keyid)


def ask_passphrase(name: str) -> bytes | None:
    """Return the passphrase of a key: from $JOBAGENT_PASSPHRASE, else asked for on a terminal, else none."""
    if given := os.environ.get(PASSPHRASE_VARIABLE):
        return given.encode()
    if sys.stdin.isatty():
        return getpass.getpass(f"passphrase of {name} (empty: none): ").encode() or None
    return None


class KeyStore:
    """The keys of a directory.  Private halves are read only when something is to be signed with them."""

    def __init__(self, directory: Path, *, passphrase: Passphrase = ask_passphrase) -> None:
        self.directory = directory
        self._passphrase = passphrase
        self._signers: dict[str, Signer] = {}

    def new(self, name: str, *, is_encrypted: bool = True) -> KeyInfo:
        """Make an ed25519 key; its private half is encrypted where a passphrase is given.

        Raises:
            UsageError: A bad name, or a key of that name is there already.
            SiteError: The directory cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"key name {name[:80]!r} is not of letters, digits and _ . -")
        private, public = self.directory / f"{name}.pem", self.directory / f"{name}.pub"
        for path in (private, public, private.with_suffix(".uri")):
            if path.exists():
                raise UsageError(f"{path} exists", remedy="keys are never overwritten: choose another name")
        secret = self._passphrase(name) if is_encrypted else None
        key = Ed25519PrivateKey.generate()
        sealed = serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption()
        encoding, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write(private, key.private_bytes(encoding, pkcs8, sealed), mode=0o600)
            durable.write(public, _public_pem(key.public_key()))
        except OSError as error:
            raise SiteError(f"cannot write keys to {self.directory}: {error.strerror}") from error
        return KeyInfo(name, SSlibKey.from_crypto(key.public_key()), "encrypted file" if secret else "file")

    def adopt_token(self, name: str, *, slot: int, label: str | None) -> KeyInfo:
        """Note a key of a PKCS#11 token (library from $PYKCS11LIB): its public half and its address.

        Raises:
            UsageError: No such token or key, or the library for it is not installed.
        """
        try:
            uri, key = HSMSigner.import_(slot, label, lambda _: self._pin(name))
        except UnsupportedLibraryError as error:
            raise UsageError(f"PKCS#11 needs another library: {error}", remedy="pip install jobagent[hsm]") from error
        except Exception as error:  # a border: token drivers raise whatever they like
            raise UsageError(f"the token has no usable key {slot}: {error or type(error).__name__}") from error
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write(self.directory / f"{name}.uri", uri.encode(), mode=0o600)
        durable.write(self.directory / f"{name}.pub", key.keyval["public"].encode())
        return KeyInfo(name, key, "token")

    def keys(self) -> Mapping[str, KeyInfo]:
        """Return all keys by key id.

        Raises:
            UsageError: A file is not a key, or no directory is there.
        """
        if not self.directory.is_dir():
            raise UsageError(f"no directory of keys {self.directory}", remedy="jobagent keys new, or --keys DIR")
        found: dict[str, KeyInfo] = {}
        names = sorted({p.stem for p in self.directory.iterdir() if p.suffix in {".pem", ".pub", ".crt", ".uri"}})
        for name in names:
            info = self._info(name)
            found.setdefault(info.id, info)
        return found

    def named(self, name: str) -> KeyInfo:
        """Return one key by name or by (the start of) its id; raises UsageError where there is none, or several."""
        fitting = [k for k in self.keys().values() if k.name == name or (len(name) >= 8 and k.id.startswith(name))]
        if len(fitting) != 1:
            raise UsageError(f"{len(fitting)} keys are called {name} in {self.directory}")
        return fitting[0]

    def signers(self, key_ids: Iterable[str]) -> list[Signer]:
        """Return a signer for each of the keys whose private half is here.

        Raises:
            SiteError: A private key may be read by others.
            UsageError: A wrong passphrase, or a file is not a key.
        """
        keys = self.keys()
        return [self._signer(keys[i]) for i in dict.fromkeys(key_ids) if i in keys and keys[i].home]

    def announcing(self, name: str) -> Ed25519PrivateKey:
        """Return the private half of an ed25519 key in a file, to issue announce tokens with.

        Raises:
            UsageError: It is on a PKCS#11 token, of another kind, or its private half is not here.
        """
        info = self.named(name)
        key = self._private(info.name) if info.home.endswith("file") else None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"key {name} has no ed25519 private half in a file here", remedy="jobagent keys new")
        return key

    def _info(self, name: str) -> KeyInfo:
        private = self.directory / f"{name}.pem"
        home = ""
        if private.exists():
            home = "encrypted file" if b"ENCRYPTED" in private.read_bytes() else "file"
        elif (self.directory / f"{name}.uri").exists():
            home = "token"
        for suffix in (".pub", ".crt"):
            if (path := self.directory / f"{name}{suffix}").exists():
                return KeyInfo(name, read_public(path), home)
        if home == "token":
            raise UsageError(f"{private.with_suffix('.uri')} has no {name}.pub beside it")
        return KeyInfo(name, SSlibKey.from_crypto(self._private(name).public_key()), home)

    def _signer(self, info: KeyInfo) -> Signer:
        if info.id not in self._signers:
            if info.home == "token":
                uri = (self.directory / f"{info.name}.uri").read_text(encoding="ascii").strip()
                self._signers[info.id] = Signer.from_priv_key_uri(uri, info.key, lambda _: self._pin(info.name))
            else:
                self._signers[info.id] = CryptoSigner(self._private(info.name), info.key)
        return self._signers[info.id]

    def _private(self, name: str) -> PrivateKeyTypes:
        path = self.directory / f"{name}.pem"
        mode = path.stat().st_mode
        if mode & _OTHERS:
            raise SiteError(f"{path} has mode {mode & 0o777:o}, others may read the key", remedy=f"chmod 600 {path}")
        data = path.read_bytes()
        secret = self._passphrase(name) if b"ENCRYPTED" in data else None
        try:
            return serialization.load_pem_private_key(data, secret)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"cannot open {path}: wrong passphrase, or not a private key in PEM",
                remedy=f"set ${PASSPHRASE_VARIABLE}, or run on a terminal to be asked",
            ) from error

    def _pin(self, name: str) -> str:
        return (self._passphrase(name) or b"").decode()


def read_public(path: Path) -> SSlibKey:
    """Return the key of a PEM file: a public key, or the one of an X.509 certificate.

    Raises:
        UsageError: The file cannot be read or is neither.
    """
    try:
        data = path.read_bytes()
        if b"BEGIN CERTIFICATE" in data:
            return SSlibKey.from_crypto(x509.load_pem_x509_certificate(data).public_key())
        return SSlibKey.from_crypto(serialization.load_pem_public_key(data))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is neither a public key nor a certificate in PEM") from error


def _public_pem(key: object) -> bytes:
    encoding, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(encoding, spki))  # type: ignore[attr-defined]
