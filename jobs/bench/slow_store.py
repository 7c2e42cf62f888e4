"""A folder that answers as slowly as an object store: each request waits."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.storage import Entry, Storage
from pipeline.storage.store import Body, Store


class SlowStorage(Storage):
    """A Storage whose store waits `seconds` before each request, and counts them by kind."""

    def __init__(self, uri: str, seconds: float) -> None:
        super().__init__(uri)
        self._seconds = seconds
        self.requests: Counter[str] = Counter()

    def _store(self) -> Store:
        return SlowStore(super()._store(), self._seconds, self.requests)


class SlowStore:
    """A Store that waits before each request. One request lists a whole folder, or deletes a batch."""

    def __init__(self, store: Store, seconds: float, requests: Counter[str]) -> None:
        self._store, self._seconds, self._requests = store, seconds, requests

    def _wait(self, kind: str) -> None:
        self._requests[kind] += 1
        time.sleep(self._seconds)

    def entries(self, path: str) -> Iterator[Entry]:
        self._wait("list")
        return self._store.entries(path)

    def head(self, path: str) -> Entry:
        self._wait("head")
        return self._store.head(path)

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        self._wait("get")
        return self._store.open(path, start, stop, etag)

    def write(self, path: str, data: bytes | Path, *, create: bool) -> bool:
        self._wait("put")
        return self._store.write(path, data, create=create)

    def remove(self, paths: Iterable[str]) -> None:
        self._wait("delete")
        self._store.remove(paths)

    def remove_folders(self, folder: str) -> None:
        self._store.remove_folders(folder)

    def honours_create(self) -> bool:
        return self._store.honours_create()

    def now(self) -> float:
        return self._store.now()

    def address(self, path: str) -> str:
        return self._store.address(path)
