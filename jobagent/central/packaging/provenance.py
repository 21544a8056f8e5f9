"""What a package contains and where it came from: a CycloneDX 1.5 bill of materials, as one JSON object.

It is signed with the package (by digest) and shown by `jobagent show`.  The same inputs give the same bytes: there
is no serial number and no time; when a package was published stands in its entry.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from jobagent.errors import PublishError
from jobagent.model import PackageId

SPEC_VERSION = "1.5"
MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Component:
    """A thing inside a package.  `sha256` is of the file that it came in, `purl` its package URL."""

    name: str
    version: str
    purl: str = ""
    licence: str = ""
    sha256: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """How a package was made.  `properties` are names and values of any kind: recipe commit, build host."""

    kind: str
    components: Sequence[Component] = ()
    properties: Mapping[str, str] = field(default_factory=dict)


def build_host() -> str:
    """Return a label of this machine that says what matters and names nobody: system, machine and C library."""
    libc, version = platform.libc_ver()
    return f"{platform.system()}-{platform.machine()}-{libc or 'libc'}-{version or 'unknown'}"


def bill_of_materials(package: PackageId, description: str, licence: str, origin: Origin) -> bytes:
    """Return the CycloneDX document of a package."""
    properties = {"jobagent:source": origin.kind, "jobagent:build-host": build_host(), **origin.properties}
    top: dict[str, Any] = {"type": "application", "name": package.name, "version": package.version}
    top |= {"group": package.namespace, "description": description} if description else {"group": package.namespace}
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "component": top | _licences(licence),
            "properties": [{"name": k, "value": v} for k, v in sorted(properties.items()) if v],
        },
        "components": [_component(c) for c in sorted(origin.components, key=lambda c: (c.name, c.version))],
    }
    return (json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def given(path: Path) -> bytes:
    """Return a bill of materials that the publisher brings; raises PublishError where it is not CycloneDX JSON."""
    data = path.read_bytes()
    try:
        document = json.loads(data) if len(data) <= MAX_BYTES else None
    except ValueError as error:
        raise PublishError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("bomFormat") != "CycloneDX":
        raise PublishError(
            f"{path} is no CycloneDX document", remedy=f"JSON with bomFormat, at most {MAX_BYTES} bytes"
        )
    return data


def _component(component: Component) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "library", "name": component.name, "version": component.version}
    if component.purl:
        item |= {"purl": component.purl, "bom-ref": component.purl}
    if component.sha256:
        item["hashes"] = [{"alg": "SHA-256", "content": component.sha256}]
    if component.source:
        item["externalReferences"] = [{"type": "distribution", "url": _reference(component.source)}]
    return item | _licences(component.licence)


def _reference(source: str) -> str:
    """Return `source` as the URI that the format asks for, without the name and password of who fetched it."""
    if short := re.fullmatch(r"[\w.-]+@([\w.-]+):(.+)", source):  # as git writes what it reaches by ssh
        source = f"ssh://{short[1]}/{short[2].lstrip('/')}"
    source = re.sub("%(?![0-9A-Fa-f]{2})", "%25", source)
    try:
        parts = urlsplit(source)
    except ValueError:
        return quote(source)
    safe = "%/=&~+!$,;'@()*" + (":" if parts.scheme else "")
    path, query, fragment = (quote(p, safe=safe) for p in (parts.path, parts.query, parts.fragment))
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, query, fragment))


def _licences(licence: str) -> dict[str, Any]:
    return {"licenses": [{"license": {"name": licence}}]} if licence else {}
