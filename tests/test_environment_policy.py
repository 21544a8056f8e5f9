"""Which variables a package may change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobagent.environment_policy import MAX_VALUE_BYTES, refusal


@pytest.mark.parametrize(
    "name",
    [
        *("LD_PRELOAD", "LD_AUDIT", "LD_BIND_NOW", "GLIBC_TUNABLES", "GCONV_PATH"),
        *("BASH_ENV", "ENV", "IFS", "PS4", "PROMPT_COMMAND", "BASH_FUNC_ls%%", "SHELLOPTS"),
        *("PYTHONSTARTUP", "PYTHONHOME", "PYTHONINSPECT", "PERL5OPT", "PERL5DB", "RUBYOPT", "JAVA_TOOL_OPTIONS"),
        *("HOME", "USER", "TMPDIR", "http_proxy", "HTTPS_PROXY", "SSL_CERT_FILE"),
        *("X509_USER_PROXY", "BEARER_TOKEN_FILE", "SSH_AUTH_SOCK"),
        *("_CONDOR_SCRATCH_DIR", "CONDOR_CONFIG", "JOBAGENT_CONFIG", "ALIEN_PROC_ID", "ALIEN_JDL_X"),
        *("", "1A", "A B", "A=B", "A\nB", "É", "x" * 129),
    ],
)
def test_a_package_may_not_change(name: str) -> None:
    assert refusal(name)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PERL5LIB", "MANPATH", "ROOT_INCLUDE_PATH", "PKG_CONFIG_PATH"),
        *("ROOTSYS", "PYTHIA8DATA", "ROOT_VERSION", "GEANT4_DATA_DIR", "G4ENSDFSTATEDATA", "LHAPDF_DATA_PATH"),
    ],
)
def test_a_package_may_change(name: str) -> None:
    assert refusal(name, "{root}/share") == ""


@pytest.mark.parametrize("value", ["a\nb", "a\0b", "\x1b[2J", "x" * (MAX_VALUE_BYTES + 1)])
def test_a_value_that_could_break_a_log_or_an_ad_is_refused(value: str) -> None:
    assert refusal("ROOTSYS", value)


@given(st.text(), st.text())
def test_whatever_is_allowed_is_a_plain_name_with_a_printable_value(name: str, value: str) -> None:
    if not refusal(name, value):
        assert name.isascii() and name.isidentifier() and value.isprintable()
