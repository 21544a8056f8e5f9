"""Errors are one line, keep no secret, and say to HTCondor who must act."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent import errors
from jobagent.errors import JobAgentError, JobError, ManagerError, SiteError, SupplyError, TrustError, one_line

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, JobAgentError)]


@given(st.text())
def test_a_message_is_always_one_printable_line(text):
    line = one_line(text)
    assert len(line) <= 900
    assert line == "" or line.isprintable()


def test_secrets_are_not_told():
    line = one_line("GET http://t/announce?k=s3cr3t&left=0 failed, password=hunter2 token=abc")
    assert "s3cr3t" not in line and "hunter2" not in line and "abc" not in line
    assert "left=0" in line


@pytest.mark.parametrize("cls", [c for c in CLASSES if c not in {errors.Interrupted, errors.JobSyntaxError}])
def test_who_must_act_decides_what_htcondor_does(cls):
    error = cls("something failed", remedy="do this")
    assert str(error) == "something failed; do this"
    assert 0 < error.exit_code < 256
    if isinstance(error, JobError | TrustError | ManagerError):
        assert 1 <= error.hook_status <= 299, "holds the job"
    if isinstance(error, SiteError | SupplyError):
        assert error.hook_status >= 300, "sends it elsewhere"


def test_exit_codes_tell_classes_apart():
    codes = [c.exit_code for c in CLASSES if c is not errors.Interrupted]
    assert len(codes) == len(set(codes))
