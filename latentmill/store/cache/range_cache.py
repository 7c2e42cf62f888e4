"""Keep byte ranges in a folder on a local disk, up to a limit. The least recently used go first.

Several processes may share the folder. Each range is a file, published by a rename, so no process sees half a range.
The reader compares the checksum, so a damaged file is only a miss. There is no lock and no shared state: a process
that has written a 64th of the limit lists the folder and cuts it to seven eighths. Eight processes stay below the
limit.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

from latentmill.store.cache import private_files
from latentmill.store.range import Range


class RangeCache:
    """A cache of byte ranges.

    Args:
        folder: where the files are. It is made if it is missing.
        limit_bytes: the most bytes of all files in the folder.
        place: the address of the output. Ranges of several outputs share a folder and do not mix.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int, place: str) -> None:
        if limit_bytes < 1:
            raise ValueError(f"the limit of a cache must be at least 1 byte, got {limit_bytes}")
        self._folder = Path(folder)
        self._limit = limit_bytes
        self._place = place
        self._written = limit_bytes  # so that the first write lists the folder

    def read(self, one: Range, view: memoryview) -> bool:
        """Fill the view from the cache. Return False if the range is not in it."""
        path = self._path(one)
        try:
            with os.fdopen(private_files.open_own(path), "rb", buffering=0) as file:
                if file.readinto(view) != one.length or file.read(1):
                    return False
            os.utime(path)
        except OSError:
            return False
        return True

    def write(self, one: Range, view: memoryview) -> None:
        """Keep a range. If this fails, as on a full disk, the range is not kept and nothing else happens."""
        if one.length > self._limit // 8:
            return
        path = self._path(one)
        temporary = path.with_name(f"{uuid.uuid4().hex}.tmp")
        try:
            for folder in (self._folder, path.parent):
                folder.mkdir(mode=0o700, exist_ok=True)
            private_files.create(temporary)
            with temporary.open("wb", buffering=0) as file:
                file.write(view)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._written += one.length
        if self._written >= self._limit // 64:
            self._written = 0
            self._trim()

    def _path(self, one: Range) -> Path:
        name = hashlib.sha256(f"{self._place}\n{one.file}\n{one.start}\n{one.length}\n{one.crc32}".encode()).hexdigest()
        return self._folder / name[:2] / name[2:34]

    def _trim(self) -> None:
        found = []
        for folder, _, names in os.walk(self._folder):
            for name in names:
                with contextlib.suppress(OSError):
                    path = Path(folder, name)
                    facts = path.stat()
                    found.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit - self._limit // 8:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
