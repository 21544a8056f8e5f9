"""`jobagent whereis`: where a package can be had: web servers, swarm, and the cache of this node."""

from __future__ import annotations

import argparse
import dataclasses
import urllib.parse
from dataclasses import dataclass

from jobagent.cli import reading
from jobagent.cli.borrowed import borrowed_kit
from jobagent.job.kit import Kit
from jobagent.model import Archive, Package


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument("package", metavar="PACKAGE", help="[VO_ORG@]Name[::version]")
    reading.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the places of every entry that fits."""
    config = reading.configured(args)
    with borrowed_kit(config) as kit:
        packages = reading.versions_of(reading.spec_of(args.package, config), kit.catalogue)
        places = [_place(package, kit) for package in packages]
    if args.json:
        reading.print_json([dataclasses.asdict(place) for place in places])
        return 0
    for place in places:
        print(f"{place.package} for {place.platform}")
        print(f"  on this node  {place.tree}, {place.leases} leases" if place.tree else "  on this node  no")
        print(f"  swarm         {place.magnet}")
        for url in place.urls:
            print(f"  web           {url}")
    return 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where one entry can be had; `tree` is empty where it is not installed."""

    package: str
    platform: str
    urls: tuple[str, ...]
    magnet: str
    tree: str
    leases: int


def _place(package: Package, kit: Kit) -> Place:
    here = next((entry for entry in kit.cache.entries() if entry.key == package.key), None)
    return Place(
        package=str(package.id),
        platform=package.platform,
        urls=tuple(kit.catalogue.urls(package)),
        magnet=magnet(package.archive),
        tree=str(kit.cache.final_tree(package)) if here else "",
        leases=here.leases if here else 0,
    )


def magnet(archive: Archive) -> str:
    """Return the magnet link of an archive, for any torrent client (BEP 9; v2 as multihash, BEP 52)."""
    topics = [f"xt=urn:btmh:1220{archive.infohash_v2}"]
    if archive.infohash_v1:
        topics.insert(0, f"xt=urn:btih:{archive.infohash_v1}")
    return f"magnet:?{'&'.join(topics)}&dn={urllib.parse.quote(archive.file_name)}"
