"""The providers: which file of a package each reads, and what it does when reading is not enough."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobagent.plugin import EnvironmentChange, Events, Installed
from jobagent_environment import initsh, modulefile, scripts
from jobagent_environment.differences import LIST_VARIABLES, difference, mark_of
from jobagent_environment.places import NotUnderstood, Place, known_variables
from jobagent_environment.settings import EnvironmentSettings

MAX_FILE_BYTES = 1 << 20
ALIEN_FILE = ".alienEnvironment"
_WORK = Path("/tmp/work")  # in the sandbox
_SOURCE = '. "$1" >/dev/null 2>&1 && exec env -0'
_SHELLS = ("/bin/bash", "/usr/bin/bash", "/bin/sh")


class InitSh:
    """alibuild's `etc/profile.d/init.sh`: read where it is as alibuild writes it, else run."""

    name = "init.sh"

    def __init__(self, settings: EnvironmentSettings) -> None:
        self._settings = settings

    def changes(self, installed: Installed, dependencies: Sequence[Installed]) -> Sequence[EnvironmentChange]:
        """See `jobagent.plugin.EnvironmentProvider`."""
        text = _text(installed.tree / initsh.FILE)
        if text is None:
            return ()
        own, others = Place.of(installed), [Place.of(item) for item in dependencies]
        try:
            return initsh.changes(text, own, others)
        except NotUnderstood:
            return self._run(own, others)

    def _run(self, own: Place, others: Sequence[Place]) -> Sequence[EnvironmentChange]:
        places = [*others, own]
        before = {
            **_bare_lists(),
            **known_variables(others),
            "WORK_DIR": str(_WORK),
            "ALIBUILD_ARCH_PREFIX": own.architecture or "any",
        }
        shell = next(path for path in _SHELLS if os.path.exists(path))
        after = scripts.environment_after(
            [shell, "-c", _SOURCE, "jobagent", str(own.tree / initsh.FILE)],
            before,
            trees=[place.tree for place in places],
            links={_link(place): place.tree for place in places},
            timeout_s=self._settings.script_timeout_s,
            may_run_unconfined=False,  # it needs the work directory that only the sandbox has
        )
        return difference(before, _with_trees(after, places))


class Modulefile:
    """A modulefile in `etc/modulefiles`; one that is not understood is said and left out."""

    name = "modulefile"

    def __init__(self, events: Events) -> None:
        self._events = events

    def changes(self, installed: Installed, dependencies: Sequence[Installed]) -> Sequence[EnvironmentChange]:
        """See `jobagent.plugin.EnvironmentProvider`."""
        own = Place.of(installed)
        path = modulefile.find(installed.tree, own.name)
        text = _text(path) if path else None
        if text is None:
            return ()
        try:
            return modulefile.changes(text, own, [Place.of(item) for item in dependencies])
        except NotUnderstood as error:
            message = f"{installed.package.id}: modulefile is left out, {error}; publish it with --env instead"
            self._events.emit("warning", message=message)
            return ()


class AlienEnvironment:
    """`.alienEnvironment` of old AliEn packages: called as `script <dir> command…`, dependencies' scripts first."""

    name = "alienEnvironment"

    def __init__(self, settings: EnvironmentSettings) -> None:
        self._settings = settings

    def changes(self, installed: Installed, dependencies: Sequence[Installed]) -> Sequence[EnvironmentChange]:
        """See `jobagent.plugin.EnvironmentProvider`."""
        if not _is_script(installed.tree):
            return ()
        with_scripts = [item.tree for item in dependencies if _is_script(item.tree)]
        before = self._environment(with_scripts)
        after = self._environment([*with_scripts, installed.tree])
        return difference(before, after)

    def _environment(self, trees: Sequence[Path]) -> dict[str, str]:
        start = _bare_lists()
        if not trees:
            return start
        chain = [word for tree in trees for word in (str(tree / ALIEN_FILE), str(tree))]
        return scripts.environment_after(
            [*chain, "env", "-0"],
            start,
            trees=trees,
            links={},
            timeout_s=self._settings.script_timeout_s,
            may_run_unconfined=self._settings.unconfined_scripts,
        )


def _bare_lists() -> dict[str, str]:
    marks = {name: mark_of(name) for name in LIST_VARIABLES}
    return marks | {"PATH": f"{scripts.BARE['PATH']}:{marks['PATH']}"}


def _link(place: Place) -> Path:
    return _WORK / (place.architecture or "any") / place.name / place.version


def _with_trees(after: Mapping[str, str], places: Sequence[Place]) -> dict[str, str]:
    """Replace the sandbox's paths by those of the trees; what still names the sandbox is left out."""
    replaced = {}
    for name, value in after.items():
        for place in places:
            value = value.replace(str(_link(place)), str(place.tree))
        if str(_WORK) not in value:
            replaced[name] = value
    return replaced


def _is_script(tree: Path) -> bool:
    path = tree / ALIEN_FILE
    return path.is_file() and not path.is_symlink() and os.access(path, os.X_OK)


def _text(path: Path) -> str | None:
    """Return the content of a regular file; None where there is none, or it is too large for what it should be."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        data = stream.read(MAX_FILE_BYTES + 1)
    return data.decode(errors="surrogateescape") if len(data) <= MAX_FILE_BYTES else None
