"""What the tests of HTCondor share: a pool with the agent, what its catalogue has, words for submitting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from jobagent.testing.equipped import EquippedPoint
from jobagent.testing.pool import Pool
from jobagent.testing.world import World


@dataclass(frozen=True, slots=True)
class Packages:
    """Full names of what the test's VO has published."""

    base: str
    tool: str
    conflicting: str
    banned: str
    data: str
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Site:
    """A pool with the agent on its two execution points, and the catalogue that they use."""

    pool: Pool
    world: World
    packages: Packages
    points: tuple[EquippedPoint, ...]

    def point(self, name: str) -> EquippedPoint:
        """Return an execution point by its name."""
        return next(p for p in self.points if p.point.directory.name == name)

    def publish(self, name: str, files: Mapping[str, str | bytes], *options: str) -> str:
        """Publish a package and return its full name once every node has seen the new catalogue."""
        before = {point: point.ask("status")["catalogue"]["version"] for point in self.points}
        full_name = self.world.publish(name, files, *options)
        for point, version in before.items():
            self.pool.wait_until(partial(_has_passed, point, version))
        return full_name

    def submit(self, *lines: str, shell: str = "", packages: str = "", queue: int = 1, **files: str | bytes) -> int:
        """Submit jobs that run `shell`, in which double quotes may not occur; return the cluster."""
        text = list(lines)
        if packages:
            text.append(f"MY.Packages = {packages}")
        if shell:
            quoted = shell.replace("'", "''")
            text += ["executable = /bin/sh", "transfer_executable = false", f"arguments = \"-c '{quoted}'\""]
        return self.pool.submit("\n".join([*text, f"queue {queue}", ""]), files=files)

    def output(self, cluster: int, process: int = 0) -> str:
        """Return what a job printed."""
        return (self.pool.sandbox(cluster) / f"out.{process}").read_text()


def _has_passed(point: EquippedPoint, version: int) -> bool:
    return bool(point.ask("status")["catalogue"]["version"] > version)


def wanting(*names: str) -> str:
    """Return the list of packages as a ClassAd expression."""
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"
