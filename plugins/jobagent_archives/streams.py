"""Archive file → its uncompressed bytes, as a sequence of buffers.

zstd archives of several frames are decompressed on several threads, ahead of the reader and in order; everything
else on one thread beside the reader.  Nothing here holds more than a few buffers, whatever the archive claims.
"""

from __future__ import annotations

import concurrent.futures
import functools
import gzip
import itertools
import lzma
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zstandard

from jobagent.plugin import HostileArchive

MAX_FRAME_BYTES = 16 << 20  # a larger frame is decompressed piece by piece
MAX_HEADERS = 1 << 20  # of frames and blocks, a block being 128 KiB mostly: archives of 100 GB
MAX_WINDOW_BYTES = 1 << 27  # what `zstd -d` takes without --long
MAX_XZ_MEMORY_BYTES = 256 << 20
_INPUT_BYTES = 1 << 20
_OUTPUT_BYTES = 4 << 20
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPABLE = 0x184D2A50  # to …5F
_BLOCK_RLE, _BLOCK_RESERVED = 1, 3

Buffers = Iterator[bytes]


@contextmanager
def opened(archive: Path, archive_format: str, workers: int) -> Iterator[Buffers]:
    """Yield the buffers of an archive, none empty; leaving the block ends its threads.

    Buffers raise HostileArchive where the data is malformed, truncated or followed by something else.
    """
    with open(archive, "rb") as stream:
        spans = frame_spans(stream) if archive_format == "tar.zst" and workers > 1 else None
        calls: Iterator[Callable[[], bytes]]
        if spans is None:
            workers = 1  # the calls share one decompressor
            calls = itertools.repeat(functools.partial(next, _DECODERS[archive_format](stream), b""))
        else:
            calls = (functools.partial(_frame, stream.fileno(), *span) for span in spans)
        with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="decompress") as pool:
            try:
                yield _ahead(pool, calls, workers + 1)
            finally:
                pool.shutdown(cancel_futures=True)


def _ahead(pool: concurrent.futures.Executor, calls: Iterator[Callable[[], bytes]], depth: int) -> Buffers:
    """Yield what `calls` return, in order and up to the first empty one, with up to `depth` calls under way."""
    pending = deque(pool.submit(call) for call in itertools.islice(calls, depth))
    while pending:
        try:
            buffer = pending.popleft().result()
        except _DAMAGE as error:
            raise HostileArchive(f"archive is damaged: {error}") from error
        if not buffer:
            return
        pending.extend(pool.submit(call) for call in itertools.islice(calls, 1))
        yield buffer


def _frame(descriptor: int, offset: int, size: int) -> bytes:
    data: bytes = _zstd().decompress(os.pread(descriptor, size, offset), allow_extra_data=False)
    return data


def _zstd() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)


def frame_spans(stream: BinaryIO) -> list[tuple[int, int]] | None:
    """Return offset and length of every frame, or None where one is too large to be held at once.

    Walks the block headers of RFC 8878, section 3.1.1, without decompressing; what it cannot read, or could only in
    too many steps, is left to the library, in one thread.
    """
    total = os.fstat(stream.fileno()).st_size
    descriptor = stream.fileno()
    spans: list[tuple[int, int]] = []
    steps = iter(range(MAX_HEADERS))
    offset = 0
    while offset < total:
        if next(steps, None) is None:
            return None
        head = os.pread(descriptor, 18, offset)
        magic = int.from_bytes(head[:4], "little")
        if magic & 0xFFFFFFF0 == _ZSTD_SKIPPABLE and len(head) >= 8:
            offset += 8 + int.from_bytes(head[4:8], "little")
            continue
        if magic != _ZSTD_MAGIC:
            return None
        try:
            parameters = zstandard.get_frame_parameters(head)
        except zstandard.ZstdError:
            return None
        if not 0 < parameters.content_size <= MAX_FRAME_BYTES:  # also where the frame does not say
            return None
        end = _end_of_frame(descriptor, offset + zstandard.frame_header_size(head), total, steps)
        if end is None:
            return None
        end += 4 * parameters.has_checksum
        spans.append((offset, end - offset))
        offset = end
    return spans if offset == total and len(spans) > 1 else None


def _end_of_frame(descriptor: int, offset: int, total: int, steps: Iterator[int]) -> int | None:
    while offset + 3 <= total and next(steps, None) is not None:
        header = int.from_bytes(os.pread(descriptor, 3, offset), "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == _BLOCK_RESERVED:
            return None
        offset += 3 + (1 if kind == _BLOCK_RLE else size)
        if is_last:
            return offset if offset <= total else None
    return None


def _zst(stream: BinaryIO) -> Buffers:
    reader = _zstd().stream_reader(stream, read_size=_INPUT_BYTES, read_across_frames=True)
    return iter(lambda: reader.read(_OUTPUT_BYTES), b"")


def _gz(stream: BinaryIO) -> Buffers:
    reader = gzip.GzipFile(fileobj=stream)
    return iter(lambda: reader.read(_OUTPUT_BYTES), b"")


def _xz(stream: BinaryIO) -> Buffers:
    data = stream.read(_INPUT_BYTES)
    while data:
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY_BYTES)
        while not decompressor.eof:
            if output := decompressor.decompress(data, _OUTPUT_BYTES):
                yield output
            data = b""
            if decompressor.needs_input and not (data := stream.read(_INPUT_BYTES)):
                raise EOFError("it ends within a stream")
        data = decompressor.unused_data or stream.read(_INPUT_BYTES)


def _plain(stream: BinaryIO) -> Buffers:
    return iter(lambda: stream.read(_OUTPUT_BYTES), b"")


_DECODERS: Mapping[str, Callable[[BinaryIO], Buffers]] = {
    "tar": _plain,
    "tar.zst": _zst,
    "tar.gz": _gz,
    "tar.xz": _xz,
}
_DAMAGE = (zstandard.ZstdError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError, MemoryError)
FORMATS = frozenset(_DECODERS)
