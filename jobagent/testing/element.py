"""A site with a compute element: a batch system whose worker nodes are bare, and in front of it collector, schedd and
job router of their own, as HTCondor-CE has them.

The batch system's HTCondor is mounted into the nodes, as sites install it there; nothing of the VO is.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from jobagent.condor.pilots.elements import Element
from jobagent.testing.barenode import BareNode, entries_below
from jobagent.testing.grid import Grid
from jobagent.testing.instance import Instance, free_port
from jobagent.testing.pool import Pool

SITE_NAME = "site.test"
_QUICK_SITE = """
NUM_CPUS = 4
MEMORY = 8000
"""
# The job router submits in the users' names.  A job that the router finished is cleaned up, and its output given
# back, when the schedd next looks at periodic expressions: every minute, elsewhere.
_BATCH = """
PERIODIC_EXPR_INTERVAL = 2
QUEUE_SUPER_USERS = root, condor, $(DAEMON_USER)
"""
_ROUTER = """
DAEMON_LIST = MASTER, SHARED_PORT, COLLECTOR, SCHEDD, JOB_ROUTER
SCHEDD_NAME = ce
PERIODIC_EXPR_INTERVAL = 2
COLLECTOR_NAME = CE
JOB_ROUTER = $(LIBEXEC)/condor_job_router
JOB_ROUTER_POLLING_PERIOD = 2
JOB_ROUTER_MAX_UPDATE_RATE = 3
JOB_ROUTER_SOURCE_JOB_CONSTRAINT = JobUniverse == 5
JOB_ROUTER_SCHEDD2_NAME = {schedd}
JOB_ROUTER_SCHEDD2_POOL = {pool}
JOB_ROUTER_SCHEDD2_SPOOL = {spool}
JOB_ROUTER_ROUTE_NAMES = batch
JOB_ROUTER_ROUTE_batch @=end
  UNIVERSE VANILLA
  REQUIREMENTS True
  EVALSET RequestCpus xcount ?: 1
  EVALSET RequestMemory maxMemory ?: 1000
  EVALSET AllowedJobDuration (maxWallTime ?: 1440) * 60 + 60
  MaxJobs = 100
  MaxIdleJobs = 100
@end
"""


class Site:
    """A compute element and the bare nodes behind it, one for each Debian of `suites`.  A context manager."""

    def __init__(self, grid: Grid, *, suites: Sequence[str] = ("bookworm",), node_config: str = "") -> None:
        self.grid = grid
        self.nodes: list[BareNode] = []
        self._suites = suites
        self._node_config = node_config
        self._stack = contextlib.ExitStack()
        self._masters: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Site:
        with contextlib.ExitStack() as stack:
            self.batch = stack.enter_context(
                Pool(
                    self.grid.condor,
                    name=SITE_NAME,
                    execution_points=0,
                    central_config=_BATCH,
                    host=self.grid.lan.address,
                )
            )
            self._introduce_user()
            self.ce = self._start_element()
            stack.callback(self.ce.stop)
            for number, suite in enumerate(self._suites, 1):
                node = stack.enter_context(BareNode(self.grid.lan, suite))
                self._equip(node, f"wn{number}")
                self.nodes.append(node)
            self.batch.wait_until(lambda: len(self.batch.machines("Name")) >= len(self._suites), 60)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def element(self) -> Element:
        """The entry under which the VO knows this site."""
        name = self.ce.tool("condor_status", "-schedd", "-af", "Name").split()[0]
        resource = f"condor {name} {self._address}"
        return Element("site-a", resource, site="site-a", cpus=2, memory_mb=4000, wall_s=14400, max_pilots=4)

    def pilot_logs(self) -> list[Path]:
        """Where the batch system keeps the standard error of pilots that still run."""
        return [path for execute in self._executes for path in execute.glob("dir_*/**/_condor_stderr")]

    def leftovers(self) -> list[str]:
        """What pilots and jobs have left on the nodes' disks; the batch system's own files do not count."""
        found = [path for node in self.nodes for path in node.written()]
        for execute in self._executes:
            found += map(str, entries_below(execute))
        return found

    # inside

    def _introduce_user(self) -> None:
        """Let the batch schedd know the user by a job of his: a router may not submit for users it never saw."""
        cluster = self.batch.submit("executable = /bin/true\nhold = true\nqueue\n")
        self.batch.central.tool("condor_rm", str(cluster))

    def _start_element(self) -> Instance:
        port = free_port(self.grid.lan.address)
        self._address = f"{self.grid.lan.address}:{port}"
        schedd = self.batch.central.tool("condor_status", "-schedd", "-af", "Name").split()[0]
        spool = self.batch.central.directory / "spool"
        settings = {
            "COLLECTOR_HOST": self._address,
            "CONDOR_HOST": self.grid.lan.address,
            "NETWORK_INTERFACE": self.grid.lan.address,
            "SHARED_PORT_PORT": str(port),
            "TRUST_DOMAIN": "ce.test",
        }
        config = _ROUTER.format(schedd=schedd, pool=self.batch.address, spool=spool)
        element = Instance(
            self.grid.condor,
            self.batch.directory / "ce",
            settings=settings,
            config=config,
            account=self.batch.account,
        )
        element.write()
        element.start()
        self.batch.wait_until(
            lambda: "Scheduler" in element.try_tool("condor_status", "-any", "-af", "MyType").stdout, 60
        )
        return element

    @property
    def _executes(self) -> list[Path]:
        return [point.directory / "execute" for point in self.batch.execution_points]

    def _equip(self, node: BareNode, name: str) -> None:
        """Install the batch system on a bare node and start it there, as root, as sites do."""
        config = f"NETWORK_INTERFACE = {node.address}\n{_QUICK_SITE}{self._node_config}"
        point = self.batch.new_execution_point(name, config=config)
        (point.directory / "execute").chmod(0o755)
        node.mount(self.grid.condor.path)
        node.mount(point.directory)
        master = str(self.grid.condor.program("condor_master"))
        environment = point.environment | {"HOME": "/tmp"}
        self._masters.append(node.start(master, "-f", environment=environment, is_root=os.geteuid() == 0))
