"""`jobagent show`: all that is signed about a package, and where its content came from."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from jobagent.cli import reading
from jobagent.contracts import Catalogue
from jobagent.errors import JobAgentError
from jobagent.model import Package

SHOWN_COMPONENTS = 12


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("package", metavar="PACKAGE", help="[VO_ORG@]Name[::version]; without version: all of them")
    parser.add_argument("--platform", metavar="P", help="only for this platform")
    parser.add_argument("--sbom", action="store_true", help="print the signed SBOM as it is")
    reading.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print what the catalogue says."""
    catalogue, config = reading.open_catalogue(args)
    packages = reading.versions_of(reading.spec_of(args.package, config), catalogue)
    packages = [p for p in packages if args.platform in {None, p.platform}]
    if args.sbom:
        for package in packages[:1]:
            if package.provenance is None:
                print(f"{package.id} was published without an SBOM", file=sys.stderr)
                return 1
            sys.stdout.buffer.write(catalogue.blob(package.provenance))
    elif args.json:
        reading.print_json([{**reading.as_json(p), "sbom": _provenance(catalogue, p)} for p in packages])
    else:
        for package in packages:
            _print(package, _provenance(catalogue, package))
    return 0


def _print(package: Package, provenance: Mapping[str, Any]) -> None:
    state = package.state.value + (f": {package.reason}" if package.reason else "")
    archive = package.archive
    rows = [
        ("platform", package.platform),
        ("state", state),
        ("published", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(package.published_s))),
        ("description", package.description),
        ("licence", package.licence),
        ("archive", f"{archive.file_name}, {reading.size(archive.size_bytes)}, sha256 {archive.sha256}"),
        ("torrent", f"v2 {archive.infohash_v2}" + (f", v1 {archive.infohash_v1}" if archive.infohash_v1 else "")),
        ("unpacked", f"{reading.size(package.tree.size_bytes)} in {package.tree.file_count} files"),
        ("needs", " ".join(str(d) for d in package.dependencies)),
        *(("environment", f"{c.action.value} {c.name} {c.value}") for c in package.environment),
        *(("also at", pfn) for pfn in package.pfns),
        *provenance_rows(provenance),
    ]
    print(package.id)
    for name, value in rows:
        if value:
            print(f"  {name:<12} {value}")


def _provenance(catalogue: Catalogue, package: Package) -> Mapping[str, Any]:
    """Return the SBOM as far as it is one; what is wrong with it, as `error`.  It is signed, but by any VO."""
    if package.provenance is None:
        return {}
    try:
        document = json.loads(catalogue.blob(package.provenance))
    except JobAgentError as error:
        return {"error": error.cause_line}
    except (ValueError, RecursionError):
        return {"error": "not JSON"}
    return document if isinstance(document, dict) else {"error": "not a JSON object"}


def provenance_rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the gist of a CycloneDX document, each value on one printable line."""
    if not document:
        return []
    if "error" in document:
        return [("provenance", f"cannot be shown: {_plain(document['error'])}")]
    rows = [
        ("provenance", f"{_plain(document.get('bomFormat', 'unknown form'))} {_plain(document.get('specVersion'))}")
    ]
    metadata = _table(document.get("metadata"))
    rows.append(("built", _plain(metadata.get("timestamp"))))
    for item in _list(metadata.get("properties")) + _list(_table(metadata.get("component")).get("properties")):
        rows.append(("", f"{_plain(_table(item).get('name'))} = {_plain(_table(item).get('value'))}"))
    components = [_table(c) for c in _list(document.get("components"))]
    for component in components[:SHOWN_COMPONENTS]:
        licences = ", ".join(filter(None, (_licence(_table(item)) for item in _list(component.get("licenses")))))
        name = f"{_plain(component.get('name'))} {_plain(component.get('version'))}"
        rows.append(("contains", name + (f" ({licences})" if licences else "")))
    if len(components) > SHOWN_COMPONENTS:
        rows.append(("", f"and {len(components) - SHOWN_COMPONENTS} more, see --sbom"))
    return rows


def _licence(item: Mapping[str, Any]) -> str:
    return _plain(
        item.get("expression") or _table(item.get("license")).get("id") or _table(item.get("license")).get("name")
    )


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _plain(value: object) -> str:
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text)[:200].strip()
