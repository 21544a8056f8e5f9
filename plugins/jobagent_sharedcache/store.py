"""Every file once: trees are hard links into a store named by content and mode.

Two versions of a package mostly have the same files, two VOs often the same package; their trees share inodes here.
Called under the quota lock, so that links and their accounting agree.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobagent.plugin import ManifestEntry, manifest
from jobagent_sharedcache.filesystem import on_disk
from jobagent_sharedcache.layout import Layout


@dataclass(slots=True)
class Books:
    """Bytes and files of the store.  `boot` tells whether a power loss may have come between store and books."""

    stored_bytes: int = 0
    stored_files: int = 0
    boot: str = ""


class Store:
    """The store of one cache.  All methods are called with the quota lock held."""

    def __init__(self, layout: Layout, boot: str) -> None:
        self._layout = layout
        self._boot = boot

    @contextlib.contextmanager
    def changing(self) -> Iterator[Books]:
        """Yield the books for a change; where it does not end well, they are removed and rebuilt at the next use."""
        books = self.books()
        self._layout.books.unlink(missing_ok=True)
        yield books
        self._write(books)

    def books(self) -> Books:
        """Return the books, rebuilt from the store where a crash came between."""
        try:
            books = Books(**json.loads(self._layout.books.read_bytes()))
        except (OSError, ValueError, TypeError):
            books = Books()
        if books.boot != self._boot:
            books = self._recount()
            self._write(books)
        return books

    def distrust(self) -> None:
        """Have the books rebuilt at their next use; called before the store or a tree of links is changed."""
        self._layout.books.unlink(missing_ok=True)

    def share(self, tree: Path, entries: Sequence[ManifestEntry], books: Books) -> int:
        """Replace the files of a staged tree by links to equal stored ones; return the bytes that stay outside.

        A stored file is hashed before it is used: the tree was verified, and must stay so.
        """
        outside_bytes = 0
        for entry in entries:
            if not _is_shareable(entry):
                continue
            stored, path = self._layout.stored(entry), tree / entry.path
            if _is_same(path, stored):  # hard links within one tree, or an update that linked its base
                continue
            if self._is_good(stored, entry, books):
                outside_bytes += 0 if _replace_by_link(path, stored) else on_disk(entry.size_bytes)
            else:
                stored.parent.mkdir(exist_ok=True)
                os.link(path, stored)
                books.stored_bytes += on_disk(entry.size_bytes)
                books.stored_files += 1
        return outside_bytes

    def forget(self, tree: Path, entries: Sequence[ManifestEntry], books: Books) -> None:
        """Drop stored files that only `tree` still has; called before the tree is removed."""
        links: Counter[int] = Counter()
        places: dict[int, tuple[Path, int, int]] = {}
        for entry in filter(_is_shareable, entries):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(tree / entry.path)
                links[status.st_ino] += 1
                places[status.st_ino] = (self._layout.stored(entry), status.st_nlink, entry.size_bytes)
        for inode, (stored, link_count, size_bytes) in places.items():
            with contextlib.suppress(FileNotFoundError):
                if link_count == links[inode] + 1 and os.lstat(stored).st_ino == inode:
                    stored.unlink()
                    books.stored_bytes -= on_disk(size_bytes)
                    books.stored_files -= 1

    def drop(self, entries: Sequence[ManifestEntry]) -> None:
        """Let no later tree use the stored copies of `entries`: they were found changed."""
        self.distrust()
        for entry in entries:
            if entry.kind == "f":
                self._layout.stored(entry).unlink(missing_ok=True)

    def _is_good(self, stored: Path, entry: ManifestEntry, books: Books) -> bool:
        try:
            status = os.lstat(stored)
        except FileNotFoundError:
            return False
        is_good = (
            status.st_size == entry.size_bytes
            and bool(status.st_mode & 0o100) == bool(entry.mode & 0o100)
            and manifest.hash_file(stored) == entry.sha256
        )
        if not is_good:
            stored.unlink()
            books.stored_bytes -= on_disk(status.st_size)
            books.stored_files -= 1
        return is_good

    def _recount(self) -> Books:
        """Count the store, removing files that no tree has any more."""
        books = Books(boot=self._boot)
        for directory, _, names in os.walk(self._layout.store):
            for name in names:
                path = os.path.join(directory, name)
                status = os.lstat(path)
                if status.st_nlink == 1:
                    os.unlink(path)
                    continue
                books.stored_bytes += on_disk(status.st_size)
                books.stored_files += 1
        return books

    def _write(self, books: Books) -> None:
        temporary = self._layout.books.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(books)), encoding="ascii")
        os.rename(temporary, self._layout.books)


def _is_shareable(entry: ManifestEntry) -> bool:
    return entry.kind == "f" and entry.size_bytes > 0


def _is_same(path: Path, stored: Path) -> bool:
    try:
        return os.lstat(path).st_ino == os.lstat(stored).st_ino
    except FileNotFoundError:
        return False


def _replace_by_link(path: Path, stored: Path) -> bool:
    """Put a link in the place of a staged file; False where the stored one has as many links as there may be."""
    temporary = path.with_name(f"{path.name[:200]}.jobagent-link")
    try:
        os.link(stored, temporary)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        return False
    os.rename(temporary, path)
    return True
