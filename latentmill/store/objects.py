"""Objects: reading one store, one try a call. Every kind of store answers with the same errors.

Paths are relative to the store's root, with "/" between folders; a folder ends in "/", and "" is the root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


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


def in_pieces(pieces: Iterator[Any]) -> Callable[[memoryview], int]:
    """Return the `readinto` of a Body whose bytes come in pieces of any size, each with a buffer."""
    rest = memoryview(b"")

    def readinto(view: memoryview) -> int:
        nonlocal rest
        while not rest and (piece := next(pieces, None)) is not None:
            rest = memoryview(piece)
        count = min(len(view), len(rest))
        view[:count] = rest[:count]
        rest = rest[count:]
        return count

    return readinto


class Objects(Protocol):
    """A store. Methods raise NotFoundError, AccessError, ChangedError, TransientError (retry) or StorageError."""

    def entries(self, path: str) -> Iterator[Entry]:
        """List the object at `path` and every object below it, sorted by code points. Each page is retried."""

    def head(self, path: str) -> Entry: ...

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        """Open bytes [start, stop). A store that can compare the etag raises ChangedError for another object."""

    def address(self, path: str) -> str: ...


def is_at(name: str, path: str) -> bool:
    """Return whether `name` is the object `path`, or is below the folder `path`."""
    return not path or name == path or name.startswith(path if path.endswith("/") else f"{path}/")
