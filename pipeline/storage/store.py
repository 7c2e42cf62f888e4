"""Store: the operations that local disks, S3 and other object stores share: those of `Objects`, and writing.

Each method is one try, and raises NotFoundError, AccessError, ChangedError, TransientError (retry) or a plain
StorageError.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from latentmill.store.objects import Body, Entry, Objects, is_at

__all__ = ["TEMPORARY", "TEMPORARY_SECONDS", "Body", "Entry", "Store", "is_at"]

TEMPORARY = "_staging/_tmp/"
"""Folder for unfinished objects. It is deleted with the rest of `_staging/`."""

TEMPORARY_SECONDS = 3600.0
"""A temporary file of a store that is older than this was left by a kill: no write takes an hour."""


class Store(Objects, Protocol):
    def write(self, path: str, data: bytes | Path, *, create: bool) -> bool:
        """Write `data` atomically. With `create`, return False if there is an object already."""

    def remove(self, paths: Iterable[str]) -> None: ...

    def remove_folders(self, folder: str) -> None: ...

    def honours_create(self) -> bool: ...

    def now(self) -> float: ...
