"""A wheel file → an installed tree, by the binary distribution format (PyPA specification, Wheel 1.x).

Every file is checked against the wheel's RECORD while it is written.  Scripts find their interpreter on PATH.
"""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import io
import re
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import BadZipFile, ZipFile, ZipInfo

from jobagent import manifest
from jobagent.errors import HostileArchive, PublishError

SITE_PACKAGES = f"lib/python{sysconfig.get_python_version()}/site-packages"
INTERPRETER = "/usr/bin/env python3"
_SHEBANG = re.compile(rb"\A#!python[^\n]*\n")
_ENTRY_POINT = re.compile(r"(?P<module>[\w.]+)\s*:\s*(?P<attribute>[\w.]+)\s*(\[.*\])?")
_WRITE_BYTES = 1 << 20
_SCRIPT = """\
#!{interpreter}
import sys
from {module} import {first}
if __name__ == "__main__":
    sys.exit({attribute}())
"""


def unpack(wheel: Path, tree: Path) -> None:
    """Install a wheel below `tree`; raises PublishError where it is malformed or not what its RECORD says."""
    try:
        with ZipFile(wheel) as archive:
            information = _information_directory(archive)
            record = _record(archive, information)
            for item, target in _targets(archive, information):
                _extract(archive, item, tree / target, record.get(item.filename, ""))
            _add_entry_points(archive, information, tree)
    except (BadZipFile, HostileArchive, OSError, ValueError, KeyError, configparser.Error) as error:
        raise PublishError(f"{wheel.name} cannot be installed: {error}") from error


def _information_directory(archive: ZipFile) -> str:
    found = {name.partition("/")[0] for name in archive.namelist() if name.partition("/")[0].endswith(".dist-info")}
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} .dist-info directories")
    return found.pop()


def _record(archive: ZipFile, information: str) -> Mapping[str, str]:
    text = archive.read(f"{information}/RECORD").decode()
    return {row[0]: row[1] for row in csv.reader(io.StringIO(text)) if len(row) == 3}


def _targets(archive: ZipFile, information: str) -> Iterator[tuple[ZipInfo, str]]:
    """Yield every file of the wheel with the path that it gets in the tree."""
    name, version = information.removesuffix(".dist-info").split("-", 1)
    data = f"{name}-{version}.data/"
    schemes = {"purelib": SITE_PACKAGES, "platlib": SITE_PACKAGES, "scripts": "bin", "headers": f"include/{name}"}
    for item in archive.infolist():
        if item.is_dir() or "/__pycache__/" in f"/{item.filename}":
            continue  # compiled files of others: stale here, and not what the sources say
        target = f"{SITE_PACKAGES}/{item.filename}"
        if item.filename.startswith(data):
            scheme, _, rest = item.filename.removeprefix(data).partition("/")
            target = rest if scheme == "data" else f"{schemes[scheme]}/{rest}"
        yield item, manifest.checked_path(target)


def _extract(archive: ZipFile, item: ZipInfo, target: Path, recorded: str) -> None:
    digest = hashlib.sha256()
    is_script = ".data/scripts/" in item.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(item) as source, open(target, "xb") as stream:
        while block := source.read(_WRITE_BYTES):
            digest.update(block)
            if is_script and not stream.tell():
                block = _SHEBANG.sub(f"#!{INTERPRETER}\n".encode(), block, count=1)
            stream.write(block)
    if not item.filename.endswith((".dist-info/RECORD", ".dist-info/RECORD.jws", ".dist-info/RECORD.p7s")):
        _check(item, recorded, digest.digest())
    if is_script or item.external_attr >> 16 & 0o111:
        target.chmod(0o755)


def _check(item: ZipInfo, recorded: str, digest: bytes) -> None:
    algorithm, _, value = recorded.partition("=")
    if algorithm != "sha256":
        raise ValueError(f"its RECORD has no sha256 of {item.filename}")
    if base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)) != digest:
        raise ValueError(f"{item.filename} is not what its RECORD says")


def _add_entry_points(archive: ZipFile, information: str, tree: Path) -> None:
    try:
        text = archive.read(f"{information}/entry_points.txt").decode()
    except KeyError:
        return
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    for section in ("console_scripts", "gui_scripts"):
        for name, value in parser.items(section) if parser.has_section(section) else ():
            match = _ENTRY_POINT.fullmatch(value)
            if match is None:
                raise ValueError(f"entry point {name} = {value!r} is malformed")
            attribute = match["attribute"]
            script = _SCRIPT.format(
                interpreter=INTERPRETER,
                module=match["module"],
                first=attribute.partition(".")[0],
                attribute=attribute,
            )
            target = tree / "bin" / manifest.checked_path(name).replace("/", "_")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(script)
            target.chmod(0o755)
