"""Read many byte ranges at once into given memory: join neighbours, run in parallel, retry, compare checksums."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

from isal.isal_zlib import crc32  # the checksum of zlib, ten times as fast

from latentmill.errors import DamagedRowError, NotFoundError
from latentmill.store.cache.range_cache import RangeCache
from latentmill.store.files import Files
from latentmill.store.range import Range

GAP_BYTES = 64 << 10
"""Ranges of one file with a smaller gap than this are read in one request."""
JOINED_BYTES = 16 << 20
"""Most bytes of a joined request, so that several requests still run in parallel."""


class RangeReader:
    """Reads ranges with a pool of threads. Each process starts its own pool at its first read.

    Args:
        files: the files to read.
        concurrency: requests that this process sends at once.
        verify: compare each range with its checksum.
        cache: keeps ranges of remote files on a local disk.
    """

    def __init__(self, files: Files, *, concurrency: int, verify: bool = True, cache: RangeCache | None = None) -> None:
        self._files = files
        self._concurrency = concurrency
        self._verify = verify
        self._cache = cache
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._lock = threading.Lock()

    @property
    def survives_fork(self) -> bool:
        """Whether a forked process can read, too."""
        return self._files.survives_fork

    def __getstate__(self) -> dict[str, object]:
        return {"files": self._files, "concurrency": self._concurrency, "verify": self._verify, "cache": self._cache}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def submit(self, ranges: Sequence[Range], into: Sequence[memoryview]) -> list[Future[None]]:
        """Start to read each range into its memory, and return one future for each range.

        A future raises DamagedRowError for bytes that are missing or fail their checksum, and StorageError if the
        storage failed.
        """
        done: list[Future[None]] = [Future() for _ in ranges]
        for group in _joined(ranges):
            self._threads().submit(self._read, group, ranges, into, done)
        return done

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():  # threads do not survive a fork
                self._pool = (os.getpid(), ThreadPoolExecutor(self._concurrency, "latentmill-read"))
            return self._pool[1]

    def _read(
        self, group: list[int], ranges: Sequence[Range], into: Sequence[memoryview], done: Sequence[Future[None]]
    ) -> None:
        try:
            if len(group) > 1 and self._cache is None:
                self._read_joined(group, ranges, into)
        except Exception:  # reading each range alone shows which one fails
            ...
        else:
            if len(group) > 1 and self._cache is None:
                good = [i for i in group if self._is_good(ranges[i], into[i])]
                for i in good:
                    done[i].set_result(None)
                group = [i for i in group if i not in good]
        for i in group:
            try:
                self._read_one(ranges[i], into[i])
            except BaseException as error:
                done[i].set_exception(error)
            else:
                done[i].set_result(None)

    def _read_joined(self, group: list[int], ranges: Sequence[Range], into: Sequence[memoryview]) -> None:
        views, at = [], ranges[group[0]].start
        for i in group:
            if ranges[i].start > at:
                views.append(memoryview(bytearray(ranges[i].start - at)))
            views.append(into[i])
            at = ranges[i].start + ranges[i].length
        self._files.read_into(ranges[group[0]].file, ranges[group[0]].start, views)

    def _read_one(self, one: Range, view: memoryview) -> None:
        if self._cache and self._cache.read(one, view) and self._is_good(one, view):
            return
        for _ in range(2):  # the disk or the wire may have been wrong, and not what is stored
            try:
                self._files.read_into(one.file, one.start, [view])
            except (EOFError, NotFoundError) as error:
                raise DamagedRowError(f"row {one.row}: {error}") from None
            if self._is_good(one, view):
                if self._cache:
                    self._cache.write(one, view)
                return
        raise DamagedRowError(
            f"row {one.row}: bytes {one.start}..{one.start + one.length} of {self._files.address(one.file)} have crc32 "
            f"{crc32(view)}, and {one.crc32} was written"
        )

    def _is_good(self, one: Range, view: memoryview) -> bool:
        return not self._verify or one.crc32 is None or crc32(view) == one.crc32


def _joined(ranges: Sequence[Range]) -> list[list[int]]:
    """Return positions in `ranges`, one group a request: ranges of one file with small gaps between them."""
    by_file: defaultdict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(ranges)), key=lambda i: ranges[i].start):
        by_file[ranges[i].file].append(i)
    groups = []
    for members in by_file.values():
        groups.append([members[0]])
        for before, i in pairwise(members):
            gap = ranges[i].start - (ranges[before].start + ranges[before].length)
            whole = ranges[i].start + ranges[i].length - ranges[groups[-1][0]].start
            if 0 <= gap <= GAP_BYTES and whole <= JOINED_BYTES:
                groups[-1].append(i)
            else:
                groups.append([i])
    return groups
