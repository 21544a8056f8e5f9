"""HTCondor's configuration of a glide-in: one text from facts, no I/O.

The slot of a batch system becomes a partitionable slot of the VO's pool.  The node service is not in the master's
DAEMON_LIST: it was there first, because it brought HTCondor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobagent.condor.language import longform
from jobagent.condor.pilots.glidein_settings import GlideinSettings
from jobagent.condor.pilots.slot import Slot

# Names in the machine ad; sites and factories match on them: added, never changed.
IS_GLIDEIN = "IsGlidein"
SITE = "GlideinSite"
PILOT = "GlideinPilot"  # the pilot script's own name for itself
BATCH_JOB = "GlideinBatchJob"  # what the factory called the job that it submitted
ENDS = "GlideinEnds"  # seconds since the epoch when running jobs are sent back; 0: no limit known
RETIRES = "GlideinRetires"  # from then on it takes no job
REASON = "GlideinReason"  # why it takes no jobs; empty where it does
UPDATE_S = (10, 300)  # seconds between looks of the startd: shortest, and HTCondor's own


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when the master is about to start.  `libexec` holds the agent's programs for HTCondor."""

    directory: Path
    tree: Path
    libexec: Path
    settings: GlideinSettings
    slot: Slot
    agent_config: str  # the execution point's settings, as `jobagent condor configure` writes them
    address: str = ""
    site: str = ""
    pilot: str = ""
    batch_job: str = ""
    reason: str = ""


def text(facts: Facts) -> str:
    """Return the whole configuration."""
    sections = (
        _paths(facts),
        _network(facts),
        _SECURITY,
        _resources(facts),
        facts.agent_config,
        _policy(facts),
        facts.settings.condor_config,
    )
    return "\n".join(section.strip("\n") + "\n" for section in sections)


def directories(directory: Path) -> Mapping[str, Path]:
    """Return HTCondor's directories below the glide-in's own, by parameter."""
    names = {"LOG": "log", "RUN": "run", "LOCK": "lock", "SPOOL": "spool", "EXECUTE": "execute"}
    names |= {"SEC_TOKEN_DIRECTORY": "tokens.d", "SEC_PASSWORD_DIRECTORY": "passwords.d"}
    return {parameter: directory / name for parameter, name in names.items()}


def attributes(facts: Facts) -> dict[str, longform.Value]:
    """Return what the machine ad says of the glide-in."""
    retires_s = facts.slot.ends_s - facts.settings.retire_s if facts.slot.ends_s else 0
    return {
        IS_GLIDEIN: True,
        SITE: facts.site,
        PILOT: facts.pilot,
        BATCH_JOB: facts.batch_job,
        ENDS: facts.slot.ends_s,
        RETIRES: retires_s,
        REASON: facts.reason.replace("\n", " "),
    }


def _paths(facts: Facts) -> str:
    lines = [
        f"RELEASE_DIR = {facts.tree}",
        "BIN = $(RELEASE_DIR)/bin",
        "SBIN = $(RELEASE_DIR)/sbin",
        "LIB = $(RELEASE_DIR)/lib",
        "LIBEXEC = $(RELEASE_DIR)/libexec",
        f"LOCAL_DIR = {facts.directory}",
        *(f"{parameter} = {path}" for parameter, path in directories(facts.directory).items()),
        "SEC_TOKEN_SYSTEM_DIRECTORY = $(SEC_TOKEN_DIRECTORY)",
        "LOCAL_CONFIG_DIR =",
        "REQUIRE_LOCAL_CONFIG_FILE = false",
        "DAEMON_LIST = MASTER, STARTD",
    ]
    return "\n".join(lines)


def _network(facts: Facts) -> str:
    first = facts.settings.pool.replace(",", " ").split()[0]
    name = f"glidein-{facts.pilot or 'of-nobody'}"
    lines = [
        f"COLLECTOR_HOST = {facts.settings.pool}",
        f"CONDOR_HOST = {first.rpartition(':')[0] or first}",
        f"NETWORK_HOSTNAME = {name}",
        "NO_DNS = true",
        "DEFAULT_DOMAIN_NAME = glidein.invalid",
        "ENABLE_IPV6 = auto",
        # one port for each daemon: a unix socket of the shared port would need a short path
        "USE_SHARED_PORT = false",
        f"STARTD_NAME = {name}",
        f"MASTER_NAME = {name}",
        f"UID_DOMAIN = {name}.invalid",
        f"FILESYSTEM_DOMAIN = {name}.invalid",
    ]
    if facts.address:
        lines += [f"NETWORK_INTERFACE = {facts.address}", "BIND_ALL_INTERFACES = false"]
    if not facts.settings.is_reachable:
        lines.append("CCB_ADDRESS = $(COLLECTOR_HOST)")
    return "\n".join(lines)


_SECURITY = """
if version >= 23.10.0
  use security:recommended
else
  use security:recommended_v9_0
endif
SEC_DEFAULT_AUTHENTICATION_METHODS = IDTOKENS
SEC_CLIENT_AUTHENTICATION_METHODS = IDTOKENS
ALLOW_DAEMON = condor@*
ALLOW_ADMINISTRATOR = condor@*
DISCARD_SESSION_KEYRING_ON_STARTUP = false
# The pool's collector is not of our family: with this on, it refuses the first update,
# and the next comes minutes later.
SEC_USE_FAMILY_SESSION = false
"""


def _resources(facts: Facts) -> str:
    lines = [
        f"NUM_CPUS = {facts.slot.cpus}",
        f"MEMORY = {facts.slot.memory_mb}",
        "NUM_SLOTS = 1",
        "NUM_SLOTS_TYPE_1 = 1",
        "SLOT_TYPE_1 = 100%",
        "SLOT_TYPE_1_PARTITIONABLE = true",
        "STARTD_DETECT_GPUS = false",  # its program is not among the worker files: the startd would end with 4
        "STARTER_ALLOW_RUNAS_OWNER = false",
        "RUNBENCHMARKS = 0",
        "JAVA =",
        "FILETRANSFER_PLUGINS = $(LIBEXEC)/data_plugin",
        f"JOBAGENT_LIBEXEC = {facts.libexec}",
    ]
    return "\n".join(lines)


def _policy(facts: Facts) -> str:
    """When it takes jobs, and when it ends.  A job that says how long it runs must fit into the slot's time."""
    ad = attributes(facts)
    length = "(TARGET.AllowedExecuteDuration ?: (TARGET.AllowedJobDuration ?: 0))"
    conditions = [f'MY.{REASON} == ""', "MY.JobAgentReady =?= true"]
    if facts.slot.ends_s:
        conditions += [f"time() < MY.{RETIRES}", f"time() + {length} < MY.{ENDS}"]
    lines = [
        "DAEMON_LIST = MASTER, STARTD",
        *(f"{name} = {longform.literal(value)}" for name, value in ad.items()),
        f"STARTD_ATTRS = $(STARTD_ATTRS) {' '.join(ad)}",
        f"START = ($(START)) && {' && '.join(conditions)}",
        "SUSPEND = false",
        "PREEMPT = false",
        "WANT_SUSPEND = false",
        "WANT_VACATE = true",
        "MachineMaxVacateTime = 10",
        f"STARTD_NOCLAIM_SHUTDOWN = {facts.settings.idle_s}",
        f"UPDATE_INTERVAL = {_update_s(facts.settings.idle_s)}",
        "MASTER.DAEMON_SHUTDOWN_FAST = (STARTD_StartTime =?= 0)",
        "SHUTDOWN_GRACEFUL_TIMEOUT = 15",
    ]
    return "\n".join(lines)


def _update_s(idle_s: int) -> int:
    """Return how often the startd looks: only then does it see that it has been idle for long enough."""
    shortest, longest = UPDATE_S
    return max(shortest, min(longest, idle_s // 4))
