"""What a store is: the few operations that local disks, S3 and other object stores share.

Paths are relative to the store's root, with "/" between folders; a folder ends in "/", and "" is the root. Each method
is one try, and raises NotFoundError, AccessError, ChangedError, TransientError (try again) or a plain StorageError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

TEMPORARY = "_staging/_tmp/"
"""Where a store keeps what is not an object yet. Swept with the rest of `_staging/`."""


class Entry(NamedTuple):
    """One listed object."""

    path: str
    """Relative to the root."""
    size: int
    """Bytes."""
    etag: str
    """Changes when the content does; without quotes. Local disks: modification time and size. "" where unknown."""
    mtime: float
    """Seconds since the epoch, by the store's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """An open object, read once from the asked offset on."""

    size: int | None
    """Of the whole object, not of the range."""
    etag: str
    readinto: Callable[[memoryview], int | None]
    """Fill the view, or a part of it, and return how much; 0 at the end."""
    close: Callable[[], None]


class Store(Protocol):
    def entries(self, path: str) -> Iterator[Entry]:
        """The object at `path` and every object below it, sorted by code points. Retries its own pages."""

    def head(self, path: str) -> Entry: ...

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        """Bytes [start, stop). With an etag, a store that can refuses another object right away (ChangedError)."""

    def write(self, path: str, data: bytes | Path, *, create: bool) -> bool:
        """Publish all of `data` or nothing. With `create`: False where an object is there already."""

    def remove(self, paths: Iterable[str]) -> None: ...

    def remove_folders(self, folder: str) -> None: ...

    def honours_create(self) -> bool: ...

    def now(self) -> float: ...

    def address(self, path: str) -> str: ...


def is_at(name: str, path: str) -> bool:
    """Whether `name` is the object `path` or lies below it as a folder."""
    return not path or name == path or name.startswith(path if path.endswith("/") else f"{path}/")
