"""A job agent for HTCondor: jobs name their software, and it arrives by signed torrent."""

__version__ = "0.1.0"
