"""Names of the attributes that jobs and machines carry in HTCondor's ads.

Users and sites write them in submit files and configuration: names are added, never changed.
Imports nothing: hook clients use it.
"""

from __future__ import annotations

# What a job asks for (`MY.Packages` in a submit file); compared without regard to case, as ClassAds are.
PACKAGES = "Packages"
PACKAGES_PREINSTALLED = "PackagesPreInstalled"
VIRTUAL_ORGANISATION = "VirtualOrganisation"

# What the agent did for a job, in its ad and in the history.
JOB_PACKAGES = "JobAgentPackages"  # list of full names, dependencies first
JOB_DIGESTS = "JobAgentDigests"  # list of sha256 of the archives, in the same order
JOB_PREPARE_SECONDS = "JobAgentPrepareSeconds"
JOB_SEEDER_BYTES = "JobAgentSeederBytes"
JOB_NEIGHBOUR_BYTES = "JobAgentNeighbourBytes"
JOB_WEB_BYTES = "JobAgentWebBytes"
JOB_CACHE_HITS = "JobAgentCacheHits"  # packages that were installed on the node already

# What a machine offers.
MACHINE_VERSION = "JobAgentVersion"
MACHINE_READY = "JobAgentReady"  # False: no job with packages should match
MACHINE_REASON = "JobAgentReason"  # why not
MACHINE_CACHED_PACKAGES = "JobAgentCachedPackages"  # list of full names
MACHINE_CACHE_FREE_MB = "JobAgentCacheFreeMB"
MACHINE_CACHE_USED_MB = "JobAgentCacheUsedMB"
MACHINE_LEASES = "JobAgentLeases"
MACHINE_FAILURES = "JobAgentFailures"  # prepares that failed in a row by the fault of node or supply
MACHINE_PEERS = "JobAgentPeers"
MACHINE_UPLOAD_RATE = "JobAgentUploadBytesPerSecond"
MACHINE_DOWNLOAD_RATE = "JobAgentDownloadBytesPerSecond"
