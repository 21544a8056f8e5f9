"""Job → ClassAd, JDL or JSON, for people and scripts that want another dialect."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jobagent.condor.access_point.translate import KIBI, MEBI, asked, carried, matched, ranked
from jobagent.condor.language import arguments as notation
from jobagent.condor.language import environment
from jobagent.condor.language.lexemes import attribute_name, quote, render
from jobagent.model import Job


def ad_attributes(job: Job) -> dict[str, str]:
    """Return the attributes of a job ad that says what `job` says; an ad's own come back as they were."""
    if job.dialect == "classad":
        return dict(job.attributes)
    found = {
        "Cmd": quote(job.executable) if job.executable else "",
        "Arguments": quote(notation.join(job.arguments)) if job.arguments else "",
        "Environment": quote(environment.render(job.environment)) if job.environment else "",
        **asked(job),
        "TransferInput": quote(",".join(item.url for item in job.inputs)) if job.inputs else "",
        "TransferOutput": quote(",".join(job.outputs)) if job.outputs else "",
        "Out": quote(job.stdout) if job.stdout else "",
        "Err": quote(job.stderr) if job.stderr else "",
        "RequestCpus": str(job.cpus or ""),
        "RequestMemory": str(-(-job.memory_bytes // MEBI) or ""),
        "RequestDisk": str(-(-job.disk_bytes // KIBI) or ""),
        "AllowedJobDuration": str(job.wall_limit_s or ""),
        "Requirements": matched(job).text,
        "Rank": ranked(job),
    }
    return {**{name: text for name, text in found.items() if text}, **carried(job)}


def as_classad(job: Job) -> str:
    """Return a ClassAd in brackets, one attribute a line."""
    lines = (f"  {attribute_name(name)} = {text};" for name, text in ad_attributes(job).items())
    return "\n".join(["[", *lines, "]", ""])


def as_jdl(job: Job) -> str:
    """Return a JDL; one that was a JDL has the attributes that it had, arguments filled in."""
    attributes = job.attributes if job.dialect == "jdl" else _jdl_attributes(job)
    return "".join(f"{name} = {text};\n" for name, text in attributes.items())


def as_json(job: Job) -> dict[str, Any]:
    """Return everything that was understood of `job`, and all that it said."""
    return {
        "dialect": job.dialect,
        "executable": job.executable,
        "arguments": list(job.arguments),
        "packages": [str(package) for package in job.packages],
        "vo": job.namespace,
        "packages_preinstalled": job.is_preinstalled_only,
        "environment": dict(job.environment),
        "inputs": [{"url": i.url, "name": i.name, "optional": i.is_optional} for i in job.inputs],
        "outputs": list(job.outputs),
        "stdout": job.stdout,
        "stderr": job.stderr,
        "validation_command": job.validation_command,
        "wall_limit_s": job.wall_limit_s,
        "disk_bytes": job.disk_bytes,
        "memory_bytes": job.memory_bytes,
        "cpus": job.cpus,
        "requirements": job.requirements,
        "attributes": dict(job.attributes),
        "warnings": list(job.warnings),
        "base_directory": str(job.base_directory),
    }


def _jdl_attributes(job: Job) -> Mapping[str, str]:
    found = {
        "Executable": quote(job.executable) if job.executable else "",
        "Arguments": quote(" ".join(map(shlex.quote, job.arguments))) if job.arguments else "",
        "Packages": _texts(list(map(str, job.packages))),
        "PackagesPreInstalled": "1" if job.is_preinstalled_only else "",
        "VirtualOrganisation": quote(job.namespace) if job.namespace else "",
        "InputFile": _texts([item.url for item in job.inputs]),
        "OutputFile": _texts([*job.outputs, *filter(None, (job.stdout, job.stderr))]),
        "Validationcommand": quote(job.validation_command) if job.validation_command else "",
        "TTL": str(job.wall_limit_s or ""),
        "Workdirectorysize": _megabytes(job.disk_bytes),
        "Memorysize": _megabytes(job.memory_bytes),
        "CPUCores": str(job.cpus or ""),
        "Requirements": job.requirements,
    }
    said = {name.lower() for name in found}
    kept = {name: text for name, text in carried(job).items() if name.lower() not in said}
    variables = {name: quote(value) for name, value in job.environment.items() if name.lower() not in said}
    if variables:
        kept |= {"JDLVariables": _texts(list(variables)), **variables}
    return {name: text for name, text in {**found, **kept}.items() if text}


def _texts(values: Sequence[str]) -> str:
    return render(values) if values else ""


def _megabytes(size_bytes: int) -> str:
    return quote(f"{-(-size_bytes // MEBI)}MB") if size_bytes else ""
