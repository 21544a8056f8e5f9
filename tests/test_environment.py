"""What packages do to the payload's environment, in which order."""

from jobagent.job.environment import apply, payload_environment
from jobagent.model import EnvironmentAction, EnvironmentChange, Job

PREPEND, APPEND, SET = EnvironmentAction.PREPEND, EnvironmentAction.APPEND, EnvironmentAction.SET


def change(action, name, value):
    return EnvironmentChange(action, name, value)


def test_later_packages_come_first_on_a_path():
    changes = [change(PREPEND, "PATH", "/dep/bin"), change(PREPEND, "PATH", "/own/bin")]
    assert apply(changes, {"PATH": "/bin"})["PATH"] == "/own/bin:/dep/bin:/bin"


def test_a_directory_is_on_a_path_once():
    changes = [change(PREPEND, "P", "/a"), change(PREPEND, "P", "/b"), change(PREPEND, "P", "/a")]
    assert apply(changes, {})["P"] == "/a:/b"
    assert apply([change(APPEND, "P", "/a")], {"P": "/a:/b"})["P"] == "/b:/a"


def test_the_base_is_not_changed():
    base = {"A": "1"}
    assert apply([change(SET, "A", "2")], base) == {"A": "2"}
    assert base == {"A": "1"}


def test_the_jobs_own_environment_is_kept_under_the_packages():
    job = Job("submit", environment={"PATH": "/mine", "X": "1"})
    made = payload_environment(job, [change(PREPEND, "PATH", "/pkg/bin")], (), {"HOME": "/h"}, "7").variables
    assert made["PATH"] == "/pkg/bin:/mine"
    assert (made["X"], made["HOME"], made["ALIEN_PROC_ID"], made["ALIEN_PACKAGES"]) == ("1", "/h", "7", "")
