"""Storage: read, list and write objects at any URI. Only this module knows which kind of store serves a URI.

    Storage(uri)        one root, e.g. the output: list, read, put, create, delete
    stream(uri)         read one object sequentially, in one GET that resumes after a broken connection
    read_object(uri)    read one whole object

Promises: an object appears whole or not at all; `create` never replaces an object; temporary faults are retried
(latentmill/store/retry.py); NotFoundError is raised only if the store reports it. All of these objects pickle, and
create their clients in the process that uses them. Reading is that of `latentmill.store`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from latentmill.store.cloud import SCHEMES
from latentmill.store.retry import retried
from latentmill.store.stream import READ_BYTES, Stream
from pipeline.errors import LimitExceededError, NotFoundError
from pipeline.storage.addresses import normal_uri, parted, redacted, scheme_of
from pipeline.storage.cloud_store import CloudStore
from pipeline.storage.local_store import LocalStore
from pipeline.storage.other_store import OtherStore
from pipeline.storage.s3_store import S3Store
from pipeline.storage.store import TEMPORARY, TEMPORARY_SECONDS, Entry, Store
from pipeline.storage.web_store import WebStore

__all__ = ["TEMPORARY", "Entry", "Storage", "Stream", "open_uri", "read_object", "stream"]

log = logging.getLogger(__name__)


class Storage:
    """One root: a local folder, `s3://bucket/prefix`, or any fsspec URL.

    Paths are relative, with "/" between folders; ".." and, on a disk, a leading "/" raise ValueError. Methods raise
    NotFoundError, AccessError, ChangedError, or a plain StorageError after the last retry.
    """

    def __init__(self, uri: str, *, public_only: bool = False) -> None:
        """Open a root. With `public_only`, web addresses inside the local network raise UnsafeAddressError."""
        self.uri = normal_uri(uri)
        self._public_only = public_only
        self._create_only: bool | None = None

    def list(self, path: str = "") -> Iterator[Entry]:
        """List the object at `path` and all objects below it, page by page, sorted by code points. May be empty."""
        return self._store().entries(self._checked(path) if path else "")

    def read(self, path: str, start: int = 0, stop: int | None = None, *, etag: str = "") -> bytes:
        """Read bytes [start, stop) of an object; a negative `start` counts from its end."""
        if start < 0:
            start = max(0, self.size(path) + start)
        if stop is not None and stop <= start:
            return b""
        with self.stream(path, start=start, stop=stop, etag=etag) as body:
            return body.readall()

    def stream(
        self, path: str, *, start: int = 0, stop: int | None = None, size: int | None = None, etag: str = ""
    ) -> Stream:
        """Return a sequential reader of bytes [start, stop). See Stream."""
        return Stream(self._store(), self._checked(path), start=start, stop=stop, size=size, etag=etag)

    def put(self, path: str, data: bytes | Path) -> None:
        """Write `data` (bytes, or the content of a local file) to `path` atomically, replacing any object there."""
        store = self._store()
        retried(lambda: store.write(self._checked(path), data, create=False))

    def create(self, path: str, data: bytes | Path) -> bool:
        """Write `data` to `path` only if there is no object at `path`.

        Returns:
            True if the object has exactly these bytes now, also if the response to the write was lost. False if it has
            other bytes. On a store without `create_only`, this checks for an object and then does a plain put.
        """
        store, path = self._store(), self._checked(path)
        if not self.create_only and self.exists(path):
            return self._holds(path, data)
        return retried(lambda: store.write(path, data, create=self.create_only)) or self._holds(path, data)

    @property
    def create_only(self) -> bool:
        """Whether the store itself rejects the second of two creates. Tested once; the result is pickled too."""
        if self._create_only is None:
            self._create_only = retried(self._store().honours_create)
            if not self._create_only:
                log.warning(
                    "output=%s has no atomic create (If-None-Match or hard links): start only one run at a time",
                    redacted(self.uri),
                )
        return self._create_only

    def delete(self, path: str) -> None:
        """Delete one object, or with a trailing "/" everything below that folder. A missing object is no error."""
        store = self._store()
        if not path.strip("/"):
            raise ValueError("delete needs a path: a whole root is never deleted")
        if not path.endswith("/"):
            retried(lambda: store.remove([self._checked(path)]))
            return
        for batch in _batches(entry.path for entry in self.list(path)):
            retried(lambda batch=batch: store.remove(batch))  # type: ignore[misc]
        store.remove_folders(path)

    def sweep_temporary(self) -> None:
        """Delete the temporary files that a kill left: those that are older than TEMPORARY_SECONDS."""
        if entries := list(self.list(TEMPORARY)):
            now = self.now()
            for entry in entries:
                if now - entry.mtime > TEMPORARY_SECONDS:
                    self.delete(entry.path)

    def exists(self, path: str) -> bool:
        try:
            self.entry(path)
        except NotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Bytes."""
        return self.entry(path).size

    def entry(self, path: str) -> Entry:
        store = self._store()
        return retried(lambda: store.head(self._checked(path)))

    def now(self) -> float:
        """Return the time of the store's clock, in seconds since the epoch. `Entry.mtime` uses the same clock."""
        return retried(self._store().now)

    def address(self, path: str) -> str:
        """Return the full URI of an object."""
        return self._store().address(path)

    def _holds(self, path: str, data: bytes | Path) -> bool:
        """Return whether the object at `path` has exactly the bytes of `data`, by reading it back."""
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if self.size(path) != size:
            return False
        with self.stream(path) as stored, io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as ours:
            while piece := stored.read(READ_BYTES):
                if piece != ours.read(len(piece)):
                    return False
        return True

    def _checked(self, path: str) -> str:
        # In a bucket "/a" is a name like any other: that of "bucket//a".
        if not path or ".." in path.split("/") or (path.startswith("/") and not scheme_of(self.uri)):
            raise ValueError(f"a path must be relative to the storage's root and without '..', got {path!r}")
        return path

    def _store(self) -> Store:
        scheme = scheme_of(self.uri)
        if scheme == "":
            return LocalStore(self.uri)
        if scheme == "s3":
            bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
            return S3Store(bucket, f"{prefix}/" if prefix else "")
        if scheme in ("http", "https"):
            return WebStore(self.uri, public_only=self._public_only)
        if scheme in SCHEMES and find_spec("obstore"):
            bucket, _, prefix = self.uri.removeprefix(f"{scheme}://").partition("/")
            return CloudStore(f"{scheme}://{bucket}", f"{prefix}/" if prefix else "")
        return OtherStore(self.uri)


def open_uri(uri: str, *, public_only: bool = False) -> tuple[Storage, str]:
    """Return the Storage that contains the object at `uri`, and the path of the object in it."""
    folder, path = parted(normal_uri(uri))
    return Storage(folder, public_only=public_only), path


def stream(uri: str, *, size: int | None = None, etag: str | None = None) -> Stream:
    """Return the sequential reader of an object. ChangedError if its size or ETag is not the given one."""
    storage, path = open_uri(uri)
    return storage.stream(path, size=size, etag=etag or "")


def read_object(
    uri: str,
    *,
    size: int | None = None,
    etag: str | None = None,
    max_bytes: int | None = None,
    public_only: bool = False,
) -> bytes:
    """Read one whole object.

    Raises:
        LimitExceededError: it is larger than `max_bytes`; reading stops soon after that many bytes.
        UnsafeAddressError: with `public_only`, the address or a redirect leads into the local network.
        StorageError: as for `stream`.
    """
    data = bytearray()
    storage, path = open_uri(uri, public_only=public_only)
    with storage.stream(path, size=size, etag=etag or "") as body:
        while piece := body.read(READ_BYTES):
            data += piece
            if max_bytes is not None and len(data) > max_bytes:
                raise LimitExceededError(f"an object of more than max_bytes={max_bytes}")
    return bytes(data)


def _batches(paths: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for path in paths:
        batch.append(path)
        if len(batch) == 1000:
            yield batch
            batch = []
    if batch:
        yield batch
