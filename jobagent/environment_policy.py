"""Which variables a package may change: one pure rule for signed changes and for what set-up scripts do.

A package names its own variables freely (`ROOTSYS`, `PYTHIA8DATA`), so the rule is a grammar and a list of what
belongs to somebody else: names that make a loader, shell or interpreter run code that the job did not ask for, that
say who and where the job is, that hold credentials, or that the agent and the workload manager own.
"""

from __future__ import annotations

import re

MAX_VALUE_BYTES = 65_536  # half of Linux's MAX_ARG_STRLEN: room for what others prepend
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

# Matched without regard to case: `http_proxy` and `HTTP_PROXY` mean the same to those who read them.
_RESERVED: tuple[tuple[str, str], ...] = (
    (r"LD_(?!LIBRARY_PATH$).*|GLIBC_TUNABLES|GCONV_PATH|LOCPATH|MALLOC_.*", "it steers the dynamic loader"),
    (r"ENV|BASH.*|SHELLOPTS|IFS|CDPATH|PS[0-4]|PROMPT_COMMAND|FPATH|ZDOTDIR", "it steers the shell"),
    (
        r"PYTHON(?!PATH$|UNBUFFERED$|HASHSEED$|DONTWRITEBYTECODE$|NOUSERSITE$|UTF8$|IOENCODING$).*"
        r"|PERL5(?!LIB$).*|PERLIO.*|RUBYOPT|NODE_OPTIONS|(JAVA_TOOL|_JAVA|JDK_JAVA)_OPTIONS|R_PROFILE.*|LUA_INIT.*",
        "it makes an interpreter run other code",
    ),
    (r"HOME|USER|LOGNAME|SHELL|MAIL|PWD|OLDPWD|SHLVL|_|TMPDIR|TMP|TEMP|TERM|HOSTNAME|UID|EUID|PPID",
     "it says who and where the job is"),
    (r"(HTTP|HTTPS|FTP|ALL|NO)_PROXY|SSL_CERT_.*|CURL_CA_BUNDLE|REQUESTS_CA_BUNDLE|HOSTALIASES|RES_OPTIONS|LOCALDOMAIN",
     "it steers the network"),
    (r"X509_USER_.*|BEARER_TOKEN.*|KRB5.*|SSH_.*|GPG_.*|AWS_.*|GIT_.*|GNUPGHOME", "it leads to credentials"),
    (r"_?CONDOR_.*|JOBAGENT.*|ALIEN_(JDL_.*|PROC_ID|PACKAGES)|SLURM_.*|XDG_RUNTIME_DIR|DBUS_.*",
     "it belongs to the agent or the workload manager"),
)  # fmt: skip
_RULES = tuple((re.compile(pattern, re.IGNORECASE), reason) for pattern, reason in _RESERVED)


def refusal(name: str, value: str = "") -> str:
    """Return in words why a package may not give `name` this value, or an empty string where it may."""
    if not _NAME.fullmatch(name):
        return "it is not a variable name"
    for pattern, reason in _RULES:
        if pattern.fullmatch(name):
            return reason
    if len(value.encode(errors="surrogateescape")) > MAX_VALUE_BYTES:
        return f"its value is longer than {MAX_VALUE_BYTES} bytes"
    if not value.isprintable():
        return "its value has control characters"
    return ""
