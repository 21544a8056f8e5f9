"""[Installed] → Environment: the variables that packages set, in the order of their dependencies.

Signed changes and those of set-up scripts both pass the allow-list; what is refused is left out with a warning,
never applied.  The agent's own variables do not reach the payload.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from jobagent import environment_policy
from jobagent.job.kit import Kit
from jobagent.model import Environment, EnvironmentAction, EnvironmentChange, Installed, Job

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


def changes_of(installed: Sequence[Installed], kit: Kit) -> tuple[EnvironmentChange, ...]:
    """Return all changes, dependencies first, with `{root}` filled in."""
    found: list[EnvironmentChange] = []
    for position, item in enumerate(installed):
        own = [*_standard(item), *item.package.environment]
        for provider in kit.environments:
            own.extend(provider.changes(item, installed[:position]))
        for change in own:
            refusal = environment_policy.refusal(change.name, change.value)
            if refusal:
                kit.events.emit("warning", message=f"{item.package.id} may not change {change.name}: {refusal}")
                continue
            value = change.value.replace("{root}", str(item.tree))
            found.append(EnvironmentChange(change.action, change.name, value))
    return tuple(found)


def apply(changes: Iterable[EnvironmentChange], base: Mapping[str, str]) -> dict[str, str]:
    """Return `base` with the changes applied; prepending puts a directory in front and keeps it once."""
    variables = dict(base)
    for change in changes:
        if change.action is EnvironmentAction.SET:
            variables[change.name] = change.value
            continue
        parts = [p for p in variables.get(change.name, "").split(":") if p and p != change.value]
        front = change.action is EnvironmentAction.PREPEND
        variables[change.name] = ":".join([change.value, *parts] if front else [*parts, change.value])
    return variables


def payload_environment(
    job: Job,
    changes: Iterable[EnvironmentChange],
    packages: Sequence[Installed],
    base: Mapping[str, str],
    job_id: str,
) -> Environment:
    """Return the payload's whole environment: base, the job's own, packages, and AliEn's variables."""
    variables = apply(changes, {"PATH": DEFAULT_PATH, **base, **job.environment})
    variables["ALIEN_PACKAGES"] = " ".join(str(i.package.id) for i in packages)
    variables["ALIEN_PROC_ID"] = job_id
    return Environment(variables)


def _standard(item: Installed) -> list[EnvironmentChange]:
    word = re.sub(r"[^A-Z0-9_]", "_", item.package.id.name.upper())
    if not word[0].isalpha():
        word = "_" + word
    return [
        EnvironmentChange(EnvironmentAction.SET, f"{word}_ROOT", "{root}"),
        EnvironmentChange(EnvironmentAction.SET, f"{word}_VERSION", item.package.id.version),
    ]
