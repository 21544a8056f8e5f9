"""Where the fuzzer begins: one good example of each format."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import struct
import tarfile
import tempfile
from pathlib import Path

import zstandard

from jobagent import entry, manifest
from jobagent.central.packaging import torrents
from jobagent.contracts import ManifestEntry
from tests.catalogue_field import entry_for
from tests.fuzz.targets import HANDSHAKE


def seeds() -> dict[str, list[bytes]]:
    """Return the examples by target."""
    encoded = entry.encode(entry_for("ROOT"))
    fields = {"path": encoded.path, "length": 10, "sha256": encoded.sha256, "custom": dict(encoded.custom)}
    archive = tar()
    return {
        "jdl": [b'Executable = "a.sh";\nPackages = {"VO_ALICE@ROOT::v6"};\nArguments = "x $1";\n[ TTL = 5*60 ]'],
        "submit": [
            b"executable = /bin/sh\narguments = \"a 'b c'\"\nif defined x\ny = $(x:1)\nendif\nqueue 2\n",
            b"environment = \"A=$(X) B='c d'\"\nexecutable = a\nqueue a from (\n1\n2\n)\n",
        ],
        "ad": [b'Cmd = "/bin/sh"\nArguments = "a b"\nIwd = "/tmp"\nJobAgentPackages = "ROOT::v6"\nA = { 1, "x" }\n'],
        "environment": [b"Environment = \"A=1 B='2 3'\"\n", b'Env = "A=1;B=2"\nEnvDelim = ";"\n'],
        "torrent": [torrent()],
        "entry": [json.dumps(fields).encode()],
        "path": [encoded.path.encode()],
        "manifest": [manifest.encode([ManifestEntry("a", "d", 0o755), ManifestEntry("a/l", "l", target="f")])],
        "wire": [b'{"v":1,"op":"prepare","job":"x","holder":4711}\n'],
        "announce": [b"info_hash=" + b"a" * 20 + b"&peer_id=" + b"b" * 20 + b"&port=6881&left=0&event=started&k=x"],
        "token": [b'{"e": 1, "n": "alice", "s": ""}'],
        "peer": [
            b"\xff" + HANDSHAKE + peer(15) + peer(4, 0) + peer(2) + peer(6, 0, 0, 16384) + peer(8, 0, 0, 16384),
            b"\x09" + HANDSHAKE + peer(14) + peer(3) + peer(21, *[1] * 12) + bytes(4),
            b"\x44" + HANDSHAKE + b"\0\0\0\4\5\xff\xff\xf0" + peer(6, 19, 0, 16384),
        ],
        "notation": [
            b'export A="$B:${C:-x}"\nexport ROOT_ROOT=${WORK_DIR}/slc7/Tool/1\n',
            b"#%Module1.0\nset version 1\nsetenv A $::env(BASEDIR)/Tool/$version\nprepend-path PATH $A/bin\n",
        ],
        "tar": [archive],
        "tar.zst": [zstandard.ZstdCompressor(write_checksum=True).compress(archive)],
        "tar.gz": [gzip.compress(archive)],
        "tar.xz": [lzma.compress(archive)],
    }


def peer(kind: int, *numbers: int) -> bytes:
    """A message of the peer protocol."""
    return struct.pack(f">IB{len(numbers)}I", 1 + 4 * len(numbers), kind, *numbers)


def torrent() -> bytes:
    """A torrent of a small file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * 100_000)
        file.flush()
        return torrents.create(Path(file.name), "a.tar.zst").data


def tar() -> bytes:
    """An archive with one member of each kind that packages have, and one name that needs an extended header."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, target in (
            ("d", tarfile.DIRTYPE, ""),
            ("d/f", tarfile.REGTYPE, ""),
            ("n" * 120, tarfile.REGTYPE, ""),
            ("l", tarfile.SYMTYPE, "d/f"),
            ("h", tarfile.LNKTYPE, "d/f"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mode = kind, target, 0o755
            member.size = 5 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"hello"))
    return stream.getvalue().rstrip(b"\0") + bytes(1024)
