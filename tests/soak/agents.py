"""Agents that use one shared cache at random, are killed at random, and are watched for broken promises.

Each agent is a forked process.  What it holds it writes to a file of its own, after it got it and before it gives it
back; so the referee knows at every instant which leases must be there.  Everything random comes from one seed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobagent.contracts import Built, Staging
from jobagent.errors import DiskFull, JobAgentError, SupplyError
from jobagent.events import Events
from jobagent.processes import is_running, start_ticks
from jobagent.testing.cache_users import content
from jobagent.testing.samples import Sample, holder, sample
from jobagent_sharedcache import SharedCache, SharedCacheSettings, locks
from jobagent_sharedcache.filesystem import remove_tree
from jobagent_sharedcache.room import need_of
from jobagent_sharedcache.settings import KeepArchives
from jobagent_sharedcache.store import Store

COMMON = {f"lib/common{n}": bytes([n]) * 5000 for n in range(6)}
LONGEST_HOLD_S = 0.02
LEFTOVER_ATTEMPTS = 10  # a sweep passes by what is locked just then
HOLDER_LIFE_S = 600


@functools.cache
def samples() -> list[Sample]:
    """Six packages that share files, as versions do."""
    return [sample(version=f"{n}", files=COMMON | {"bin/program": f"version {n}".encode()}) for n in range(6)]


def open_cache(
    root: Path, keep_archives: KeepArchives = KeepArchives.ALWAYS, events: Events | None = None
) -> SharedCache:
    """Open the cache with room for about four of the six packages."""
    settings = SharedCacheSettings(quota_bytes=4 * need_of(samples()[0].package).bytes, keep_archives=keep_archives)
    return SharedCache(settings, events or Events(), root=root, may_view=False)


class Violation(Exception):
    """A promise was broken."""


# --- an agent


class Agent:
    """One process that takes, holds, evicts, verifies and sweeps until it is killed."""

    def __init__(self, base: Path, seed: int) -> None:
        self._base = base
        self._random = random.Random(seed)
        self._events = Events()
        self._cache = open_cache(base / "cache", self._random.choice(list(KeepArchives)), self._events)
        self._samples = samples()
        self._note = base / "notes" / str(os.getpid())

    def run(self) -> None:
        """Never returns."""
        while True:
            wanted = self._random.choice(self._samples)
            act = self._random.choices(
                (self._use, self._lend, self._evict, self._verify, self._sweep), (12, 2, 4, 1, 1)
            )
            with contextlib.suppress(DiskFull, SupplyError):
                act[0](wanted)

    def _build(self, wanted: Sample) -> object:
        """A builder that is slow enough to be killed in, and sometimes fails."""

        def build(staging: Staging) -> Built:
            key = wanted.package.key
            self._events.emit("progress", task="fetch", digest=key, done=1, total=2)
            built = wanted(staging)
            time.sleep(self._random.random() * LONGEST_HOLD_S / 4)
            if self._random.random() < 0.1:
                raise SupplyError("the swarm is gone")
            return built

        return build

    def _use(self, wanted: Sample) -> None:
        lease = self._cache.acquire(wanted.package, holder(), self._build(wanted))  # type: ignore[arg-type]
        self._say([lease.id])
        time.sleep(self._random.random() * LONGEST_HOLD_S)
        if content(lease.installed.tree) != dict(wanted.files):
            raise Violation(f"leased tree {lease.installed.tree} is not whole")
        self._say([])
        self._cache.release(lease)

    def _lend(self, wanted: Sample) -> None:
        """Take a lease for another process, as the node service does; it must outlive this agent."""
        job = subprocess.Popen(["sleep", str(HOLDER_LIFE_S)], start_new_session=True, cwd=self._base)
        try:
            lease = self._cache.acquire(wanted.package, holder(job.pid), self._build(wanted))  # type: ignore[arg-type]
            self._say([lease.id], job.pid)
            time.sleep(self._random.random() * LONGEST_HOLD_S)
            self._say([])
        finally:
            job.kill()
            job.wait()

    def _evict(self, wanted: Sample) -> None:
        self._cache.evict(wanted.package.key)

    def _verify(self, wanted: Sample) -> None:
        if not self._cache.verify(wanted.package.key) and list((self._cache.root / "quarantine").iterdir()):
            raise Violation(f"{wanted.package.id} was found damaged")

    def _sweep(self, wanted: Sample) -> None:
        self._cache.sweep()

    def _say(self, leases: Sequence[str], job: int = 0) -> None:
        temporary = self._note.with_suffix(".tmp")
        temporary.write_text(json.dumps({"leases": list(leases), "job": job, "ticks": start_ticks(job)}))
        temporary.rename(self._note)


# --- the referee


@dataclass(slots=True)
class Referee:
    """Starts agents, kills them, and checks what must hold after each death."""

    base: Path
    random: random.Random
    cache: SharedCache
    agents: list[int]
    kills: int = 0

    @classmethod
    def with_agents(cls, base: Path, seed: int, count: int) -> Referee:
        """Make the place and start the agents."""
        (base / "notes").mkdir(parents=True)
        referee = cls(base, random.Random(seed), open_cache(base / "cache"), [])
        for _ in range(count):
            referee.start()
        return referee

    def start(self) -> None:
        """Fork an agent."""
        seed = self.random.getrandbits(32)
        child = os.fork()
        if child == 0:
            try:
                Agent(self.base, seed).run()
            except BaseException:  # noqa: BLE001 - whatever ends an agent but a kill is a violation
                (self.base / f"violation-{os.getpid()}").write_text(traceback.format_exc())
            finally:
                os._exit(1)
        self.agents.append(child)

    def kill_one(self, *, longest_wait_s: float) -> None:
        """Let the agents work for a random time, kill one, check, and start another."""
        time.sleep(self.random.random() * longest_wait_s)
        victim = self.agents.pop(self.random.randrange(len(self.agents)))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        self.kills += 1
        self.check_the_dead(victim)
        self.check_the_living()
        check_visible(self.base / "cache")
        check_no_leftovers(self.cache)
        self.check_violations()
        self.start()

    def check_violations(self) -> None:
        """Raise what an agent found."""
        for path in self.base.glob("violation-*"):
            raise Violation(path.read_text())

    def check_the_dead(self, pid: int) -> None:
        """A killed agent holds nothing for itself; what it took for a job that lives, the job still has."""
        live = {lease.id: lease.holder for lease in self.cache.leases()}
        if any(h.pid == pid for h in live.values()):
            raise Violation(f"killed agent {pid} still holds a lease")
        note = self.base / "notes" / str(pid)
        held = json.loads(note.read_text()) if note.exists() else {"leases": [], "job": 0, "ticks": 0}
        note.unlink(missing_ok=True)
        job = held["job"]
        if not job:
            return
        if held["leases"] and is_running(job, held["ticks"]) and not set(held["leases"]) <= set(live):
            raise Violation(f"job {job} lost its lease when agent {pid} was killed")
        if is_running(job, held["ticks"]):
            os.kill(job, signal.SIGKILL)
            while is_running(job, held["ticks"]):
                time.sleep(0.001)
        if any(lease.holder.pid == job for lease in self.cache.leases()):
            raise Violation(f"job {job} ended and still holds a lease")

    def check_the_living(self) -> None:
        """What a living agent says it holds counts, unless it has given it back meanwhile."""
        for pid in self.agents:
            note = self.base / "notes" / str(pid)
            with contextlib.suppress(FileNotFoundError, ValueError):
                held = json.loads(note.read_text())
                live = {lease.id for lease in self.cache.leases()}
                missing = set(held["leases"]) - live
                if missing and json.loads(note.read_text()) == held:
                    raise Violation(f"agent {pid} holds {missing}, the cache does not know")

    def finish(self) -> None:
        """Kill all at once; then nothing may be left but whole packages, and all of them must be of use."""
        for pid in self.agents:
            os.kill(pid, signal.SIGKILL)
        for pid in self.agents:
            os.waitpid(pid, 0)
        self.agents.clear()
        self.check_violations()
        self._kill_jobs()
        self.cache.close()
        check_quiet(self.base / "cache")

    def _kill_jobs(self) -> None:
        """End the jobs of dead agents, also of those that died before they told of theirs."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink() == self.base:
                    os.kill(int(process.name), signal.SIGKILL)


def check_visible(root: Path) -> None:
    """Check that each package is complete or absent, whoever builds or evicts it meanwhile."""
    known = {s.package.key: dict(s.files) for s in samples()}
    for directory in (root / "packages").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it went by one rename while we looked
            inode = directory.stat().st_ino
            try:
                found, names = content(directory / "tree"), {p.name for p in directory.iterdir()}
            except FileNotFoundError:
                found, names = {}, set()
            is_whole = found == known[directory.name] and {"manifest", "record.json", "stamp.json", "used"} <= names
            if not is_whole and directory.stat().st_ino == inode:
                raise Violation(f"{directory} is visible and not whole: {sorted(found)}, {sorted(names)}")


def check_no_leftovers(cache: SharedCache) -> None:
    """Check that a sweep removes all that the dead left and nobody is at work on; the living may be in its way."""
    for _ in range(LEFTOVER_ATTEMPTS):
        cache.sweep()
        left = leftovers(cache)
        if not left:
            break
        time.sleep(LONGEST_HOLD_S)
    else:
        raise Violation(f"not swept: {left}")


def leftovers(cache: SharedCache) -> list[Path]:
    """Return what lies about although nobody holds the lock that it needs."""
    root, left = cache.root, []
    for path in [p for name in ("staging", "reservations", "progress") for p in (root / name).iterdir()]:
        with locks.attempted(root / "locks" / path.name[:64], exclusive=True) as is_free:
            left += [path] if is_free and path.exists() else []
    for package in (root / "packages").iterdir():
        with locks.attempted(root / "locks" / package.name, exclusive=True) as is_free:
            archive = root / "archives" / package.name
            with contextlib.suppress(FileNotFoundError):  # evicted before we had the lock
                record = json.loads((package / "record.json").read_bytes())
                left += [archive] if is_free and record["has_archive"] != archive.exists() else []
    with locks.held(root / "quota.lock"):
        left += (root / "trash").iterdir()
    return left


def check_quiet(root: Path, *, quarantined: int = 0) -> None:
    """Check a cache that nobody uses: raise Violation for anything half done, left behind or miscounted."""
    cache = open_cache(root)
    cache.sweep()
    for name in ("staging", "reservations", "progress", "trash", "sessions"):
        if left := list((root / name).iterdir()):
            raise Violation(f"{name} has {left}")
    if len(list((root / "quarantine").iterdir())) > quarantined:
        raise Violation("a package went to quarantine that nobody damaged")
    known = {s.package.key: s for s in samples()}
    for entry in cache.entries() if not quarantined else ():
        wanted = known[entry.key]
        if content(cache.final_tree(wanted.package)) != dict(wanted.files) or not cache.verify(entry.key):
            raise Violation(f"{entry.package_id} is not whole")
    counted = cache.usage()
    Store(cache._layout, cache._leases.boot).distrust()
    if (recounted := cache.usage().stored_bytes) != counted.stored_bytes:
        raise Violation(f"the books say {counted.stored_bytes} bytes, the store has {recounted}")
    for wanted in known.values():
        lease = cache.acquire(wanted.package, holder(), wanted)
        if content(lease.installed.tree) != dict(wanted.files):
            raise Violation(f"{wanted.package.id} cannot be had whole")
        cache.release(lease)
    if len(cache.entries()) != len(list((root / "packages").iterdir())):
        raise Violation("packages/ has what is no package")
    check_emptied(cache)


def check_emptied(cache: SharedCache) -> None:
    """Evict everything: nothing may be left on the disk but lock files, and what waits to be resumed or looked at."""
    for entry in cache.entries():
        cache.pin(entry.key, is_pinned=False)  # an agent may have been killed before it did
        if not cache.evict(entry.key):
            raise Violation(f"{entry.package_id} cannot be evicted though nobody uses it")
    cache.close()
    waiting = {"archives", "quarantine", "locks"}
    left = [
        path
        for place in cache.root.iterdir()
        if place.is_dir() and place.name not in waiting
        for path in place.rglob("*")
        if not path.is_dir()
    ]
    if left or (cache.usage().stored_bytes, cache.usage().inodes) != (0, 0):
        raise Violation(f"after everything was evicted there are still {left[:5]}, {cache.usage()}")


@contextlib.contextmanager
def quick_disk(otherwise: Path) -> Iterator[Path]:
    """Yield a directory in memory where there is one: thousands of syncfs(2) on a disk that others use take hours."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield otherwise
        return
    directory = Path(tempfile.mkdtemp(prefix="jobagent-soak-", dir=memory))
    try:
        yield directory
    finally:
        remove_tree(directory)


@contextlib.contextmanager
def soaking(base: Path, *, seed: int, agents: int) -> Iterator[Referee]:
    """Run agents; end them and their jobs whatever happens."""
    referee = Referee.with_agents(base, seed, agents)
    try:
        yield referee
        referee.finish()
    finally:
        for pid in referee.agents:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        referee._kill_jobs()


# --- step faults


def scenario(root: Path) -> None:
    """Do all that a cache does, once; whatever fails raises an error of ours."""
    cache = open_cache(root)
    one, two, three = samples()[:3]
    lease = cache.acquire(one.package, holder(), one)
    cache.release(cache.acquire(two.package, holder(), two))
    cache.pin(two.package.key, is_pinned=True)
    cache.pin(two.package.key, is_pinned=False)
    cache.evict(two.package.key)
    cache.release(cache.acquire(three.package, holder(), three))
    cache.verify(three.package.key)
    damage = 'chmod u+w "$0" && printf damaged > "$0"'  # by another process: the payload's steps are not ours
    subprocess.run(["sh", "-c", damage, str(cache.final_tree(three.package) / "bin/program")], check=True)
    cache.verify(three.package.key)
    cache.release(cache.acquire(three.package, holder(), three))
    cache.release(lease)
    cache.sweep()
    cache.close()
    thrifty = open_cache(root, KeepArchives.LEASED)
    thrifty.release(thrifty.acquire(two.package, holder(), two))
    thrifty.close()
    stingy = open_cache(root, KeepArchives.NEVER)
    stingy.evict(one.package.key)
    stingy.release(stingy.acquire(one.package, holder(), one))
    stingy.close()


def outcome_of(root: Path) -> int:
    """Run the scenario; 0 where it went through, 3 where it ended in an error of ours with one line."""
    try:
        scenario(root)
    except JobAgentError as error:
        return 3 if "\n" not in str(error) else 4
    return 0
