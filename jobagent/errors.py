"""The error tree, branched by who must act.

Each class owns two stable numbers: ``exit_code`` for shells and ``hook_status`` for HTCondor's hooks
(1…299 holds the job, 300 and above sends it back to Idle).  Users and scripts rely on them: numbers are added,
never changed.  Knows nothing of the rest of the project.
"""

from __future__ import annotations

import re

_SECRET = re.compile(r"(?i)((?:token|password|passphrase|secret|[?&]k)=)[^\s&\"']+")


def one_line(text: str, *, limit: int = 900) -> str:
    """Fold `text` to one printable line of at most `limit` characters with secrets redacted.

    The line becomes a HoldReason, which HTCondor keeps in a ClassAd string.
    """
    folded = " ".join(_SECRET.sub(r"\1***", text).split())
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in folded)
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


class JobAgentError(Exception):
    """Base of all errors that the project raises on purpose: one line, with cause and remedy."""

    exit_code = 200
    retryable = False

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.cause_line = one_line(message)
        self.remedy = one_line(remedy)
        super().__init__(f"{self.cause_line}; {self.remedy}" if remedy else self.cause_line)

    @property
    def hook_status(self) -> int:
        """HTCondor's HookStatusCode: below 300 holds the job, from 300 it runs elsewhere."""
        return self.exit_code + 100 if self.retryable else self.exit_code

    @property
    def kind(self) -> str:
        """The class name, stable, for scripts."""
        return type(self).__name__


class JobError(JobAgentError):
    """The job asks for something wrong: its user must change it.  HTCondor holds the job."""

    exit_code = 210


class UnknownPackage(JobError):
    """No such package, or no such version of it."""

    exit_code = 211


class VersionConflict(JobError):
    """Two versions of one package in one closure."""

    exit_code = 212


class DependencyCycle(JobError):
    """A package depends on itself, through others or directly."""

    exit_code = 213


class JobSyntaxError(JobError):
    """The job description cannot be read."""

    exit_code = 214

    def __init__(self, message: str, *, line: int = 0, column: int = 0, remedy: str = "") -> None:
        self.line = line
        self.column = column
        where = f"line {line}, column {column}: " if line else ""
        super().__init__(where + message, remedy=remedy)


class WrongPlatform(JobError):
    """The package exists, but not for this platform."""

    exit_code = 215


class PackageBanned(JobError):
    """The package was banned by its VO."""

    exit_code = 216


class ValidationFailed(JobError):
    """The payload ran, its Validationcommand refused the result (ERROR_V, ERROR_VT, ERROR_VN)."""

    exit_code = 217


class LimitExceeded(JobError):
    """The payload passed a limit that the job itself set (its TTL)."""

    exit_code = 218


class PayloadNotRunnable(JobError):
    """The payload's executable or an input is missing or cannot be executed."""

    exit_code = 219


class SiteError(JobAgentError):
    """This node or site cannot do it: its admin must act.  HTCondor runs the job elsewhere."""

    exit_code = 220
    retryable = True


class DiskFull(SiteError):
    """Not enough space, inodes or quota."""

    exit_code = 221


class ScratchUnusable(SiteError):
    """The scratch or cache directory cannot be used."""

    exit_code = 222


class NoFreePort(SiteError):
    """No port in the configured range can be bound."""

    exit_code = 223


class ConfigurationError(SiteError):
    """The site's configuration is wrong."""

    exit_code = 224


class NodeServiceUnavailable(SiteError):
    """The node service of this worker node does not answer."""

    exit_code = 225


class NodeUnfit(SiteError):
    """The node fails a check: kernel, machine type, memory, clock."""

    exit_code = 226


class SupplyError(JobAgentError):
    """Catalogue or swarm cannot deliver now: retry later.  HTCondor sends the job back to Idle."""

    exit_code = 230
    retryable = True


class CatalogueUnreachable(SupplyError):
    """No catalogue mirror answers and nothing valid is cached."""

    exit_code = 231


class PackageUnavailable(SupplyError):
    """Every transport failed to deliver the archive."""

    exit_code = 232


class CatalogueExpired(SupplyError):
    """The catalogue's signed metadata is past its expiry."""

    exit_code = 233


class TrustError(JobAgentError):
    """A signature or digest is wrong.  Never retried, never relaxed."""

    exit_code = 240


class BadSignature(TrustError):
    """Metadata is not signed by enough of the right keys, or was rolled back."""

    exit_code = 241


class DigestMismatch(TrustError):
    """Data differs from what was signed."""

    exit_code = 242


class HostileArchive(TrustError):
    """An archive or torrent tries to leave its directory or to pass its signed limits."""

    exit_code = 243


class CacheTampered(TrustError):
    """An installed tree no longer matches its manifest."""

    exit_code = 244


class PoolTokenRefused(TrustError):
    """The token for an HTCondor pool is expired, forged, or not for this pool."""

    exit_code = 245


class PluginError(JobAgentError):
    """A plugin failed: names the distribution and the hook."""

    exit_code = 250
    retryable = True


class ManagerError(JobAgentError):
    """Whoever manages the catalogue or a VO must act: keys, thresholds, a damaged catalogue directory."""

    exit_code = 201


class PublishError(ManagerError):
    """The package cannot be made or entered into the catalogue: its publisher must act."""

    exit_code = 202


class AlreadyPublished(PublishError):
    """An entry of that name, version and platform exists; packages are immutable."""

    exit_code = 203


class UsageError(JobAgentError):
    """The command line is wrong."""

    exit_code = 2


class Interrupted(JobAgentError):
    """A signal ended the work; the exit code follows the shell's convention of 128 plus its number."""

    retryable = True

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"interrupted by signal {signal_number}")
        self.exit_code = 128 + signal_number
