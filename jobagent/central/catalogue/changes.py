"""What a signer agrees to: the difference between waiting metadata and those before, in words."""

from __future__ import annotations

from jobagent.central.catalogue.chain import ROOT
from jobagent.central.catalogue.shelf import Shelf


def changes(shelf: Shelf, role: str) -> list[str]:
    """Return what a waiting role changes against the newest version on the shelf, a line a change."""
    new = shelf.pending()[role].signed
    known = shelf.versions().get(role, [])
    old = shelf.read(shelf.path(role, known[0])).signed if known else None
    lines = [f"expires {new.expires:%Y-%m-%d}"]
    if role == ROOT:
        for name, entry in new.roles.items():
            before = old.roles[name] if old is not None else None
            if before is None or (entry.keyids, entry.threshold) != (before.keyids, before.threshold):
                ids = ", ".join(i[:12] for i in entry.keyids)
                lines.append(f"{name}: {entry.threshold} of {len(entry.keyids)} keys: {ids}")
        return lines
    before_targets = old.targets if old is not None else {}
    for path, target in sorted(new.targets.items()):
        if path not in before_targets:
            lines.append(f"+ {path} sha256 {target.hashes.get('sha256', '')[:16]}… {target.length} bytes")
        elif target != before_targets[path]:
            lines.append(f"~ {path} is now {target.custom.get('state') if target.custom else '?'}")
    lines += [f"- {path}" for path in sorted(before_targets.keys() - new.targets.keys())]
    before_roles = old.delegations.roles if old is not None and old.delegations else {}
    for name, delegation in (new.delegations.roles if new.delegations else {}).items():
        if delegation != before_roles.get(name):
            ids = ", ".join(i[:12] for i in delegation.keyids)
            lines.append(f"{name}: {delegation.threshold} of {len(delegation.keyids)} keys: {ids}")
    lines += [f"{name} is no longer delegated to" for name in before_roles if name not in _roles(new)]
    return lines


def _roles(targets: object) -> dict[str, object]:
    delegations = getattr(targets, "delegations", None)
    return delegations.roles if delegations else {}
