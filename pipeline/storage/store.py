"""Store: the operations that local disks, S3 and other object stores share.

Paths are relative to the store's root, with "/" between folders; a folder ends in "/", and "" is the root. Each method
is one try, and raises NotFoundError, AccessError, ChangedError, TransientError (retry) or a plain StorageError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

TEMPORARY = "_staging/_tmp/"
"""Folder for unfinished objects. It is deleted with the rest of `_staging/`."""

TEMPORARY_SECONDS = 3600.0
"""A temporary file of a store that is older than this was left by a kill: no write takes an hour."""


class Entry(NamedTuple):
    """One listed object."""

    path: str
    """Path relative to the root."""
    size: int
    """Size in bytes."""
    etag: str
    """Changes with the content; without quotes. Local disks: modification time and size. "" if unknown."""
    mtime: float
    """Modification time by the store's clock, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """An open object, which can be read once from the requested offset on."""

    size: int | None
    """Size of the whole object, not of the range."""
    etag: str
    readinto: Callable[[memoryview], int | None]
    """Fill the view, or a part of it, and return how much; 0 at the end."""
    close: Callable[[], None]


class Store(Protocol):
    def entries(self, path: str) -> Iterator[Entry]:
        """List the object at `path` and every object below it, sorted by code points. Each page is retried."""

    def head(self, path: str) -> Entry: ...

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        """Open bytes [start, stop). A store that can compare the etag raises ChangedError for another object."""

    def write(self, path: str, data: bytes | Path, *, create: bool) -> bool:
        """Write `data` atomically. With `create`, return False if there is an object already."""

    def remove(self, paths: Iterable[str]) -> None: ...

    def remove_folders(self, folder: str) -> None: ...

    def honours_create(self) -> bool: ...

    def now(self) -> float: ...

    def address(self, path: str) -> str: ...


def is_at(name: str, path: str) -> bool:
    """Return whether `name` is the object `path`, or is below the folder `path`."""
    return not path or name == path or name.startswith(path if path.endswith("/") else f"{path}/")
