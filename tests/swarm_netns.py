"""A stock client as an outsider where loopback will not do: run in a network namespace of its own.

Transmission refuses peers on 127/8.  `python tests/swarm_netns.py DIRECTORY COMMAND…` gives the loopback device of
this (new) namespace other addresses, runs central services at one of them, starts COMMAND with `{torrent}` and
`{into}` filled in, and ends with 0 when the archive has arrived whole.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jobagent.central.packaging import torrents
from jobagent.central.services.watch import LEGACY_SUFFIX
from tests.swarm_field import central, wait_until

SERVER, CLIENT = "10.99.0.1", "10.99.0.2"
TIMEOUT_S = 60.0


def main() -> int:
    """Run the experiment; the caller made the namespace."""
    directory, command = Path(sys.argv[1]), sys.argv[2:]
    for words in (["link", "set", "lo", "up"], ["addr", "add", f"{SERVER}/24", "dev", "lo"]):
        subprocess.run(["ip", *words], check=True)
    subprocess.run(["ip", "addr", "add", f"{CLIENT}/24", "dev", "lo"], check=True)
    into = directory / "into"
    into.mkdir()
    with central(directory, own_address=SERVER) as services:
        published = services.publish(size_bytes=2_000_000)
        torrent = directory / "package.torrent"
        torrent.write_bytes(torrents.legacy(published.torrent, f"{services.url}/announce").data)
        words = [w.format(torrent=torrent, into=into, client=CLIENT, directory=directory) for w in command]
        client = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            content, target = published.path.read_bytes(), into / published.path.name
            wait_until(lambda: target.is_file() and target.read_bytes() == content, TIMEOUT_S)
            wait_until(
                lambda: services.tracker.counts(published.package.key + LEGACY_SUFFIX).downloaded == 1, TIMEOUT_S
            )
        finally:
            client.terminate()
            client.wait(20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
