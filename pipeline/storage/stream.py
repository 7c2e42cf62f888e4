"""Read one object from start to end, in one request that resumes where it broke off."""

from __future__ import annotations

import io
import shutil
import time
from types import TracebackType
from typing import Any

from pipeline.errors import ChangedError, StorageError, TransientError
from pipeline.storage.addresses import redacted
from pipeline.storage.retry import Backoff
from pipeline.storage.store import Body, Store

READ_BYTES = 1 << 20
"""Of one read. Smaller ones cost trips to the client's thread, larger ones memory."""


PATIENCE_SECONDS = 120.0


LEAST_RATE = 16 << 10
"""Bytes a second. A stream is given up when it was waited for, in all, longer than PATIENCE_SECONDS and what it brought
would have taken at this rate: the wait for a server that sends a byte now and then has an end."""


class Stream(io.RawIOBase):
    """Bytes [start, stop) of one object, in order, from one GET that goes on from the offset when it breaks.

    Every GET after the first asks for the same ETag, so the bytes are of one object. Ends only when all bytes were
    received. Use it in a `with`, or through io.BufferedReader.

    Raises:
        ChangedError: the object's size or ETag is not the expected one.
        NotFoundError, AccessError: as the store says.
        StorageError: it broke off again and again without a byte in between, ended early, or is too slow (LEAST_RATE).
    """

    def __init__(
        self,
        store: Store,
        path: str,
        *,
        start: int = 0,
        stop: int | None = None,
        size: int | None = None,
        etag: str = "",
    ) -> None:
        super().__init__()
        self._store, self._path = store, path
        self._size, self._etag = size, etag
        self._offset, self._stop = start, stop
        self._body: Body | None = None
        self._backoff = Backoff()
        self._received, self._waited = 0, 0.0
        self._finished = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while view and not self._finished:
            begin = time.monotonic()
            try:
                return self._read_some(view)
            except TransientError as error:
                self._drop()
                self._backoff.wait(error)
            finally:
                self._waited += time.monotonic() - begin
        return 0

    def readall(self) -> bytes:
        # The inherited one asks for 8 KiB at a time, and each read is a trip to the client's thread.
        whole = io.BytesIO()
        shutil.copyfileobj(self, whole, READ_BYTES)
        return whole.getvalue()

    def _read_some(self, view: memoryview) -> int:
        if self._waited > PATIENCE_SECONDS + self._received / LEAST_RATE:
            raise StorageError(
                f"{self._where()}: {self._received} bytes in {self._waited:.0f} s of waiting, slower than {LEAST_RATE} "
                f"bytes/s after {PATIENCE_SECONDS:g} s"
            )
        if self._body is None:
            self._connect()
        if self._stop is not None and self._offset >= self._stop:
            self._finished = True
            return 0
        assert self._body is not None
        if self._stop is not None:
            view = view[: self._stop - self._offset]
        count = self._body.readinto(view) or 0
        self._offset += count
        self._received += count
        if count:
            self._backoff.progress()
        elif self._stop is None:
            self._finished = True
        else:
            raise TransientError(f"{self._where()}: ended at byte {self._offset} of {self._stop}")
        return count

    def _connect(self) -> None:
        """Ask for what is still missing, and hold the answer against what is expected."""
        store = self._store
        if self._stop is not None and self._offset >= self._stop and self._size is None:
            return
        body = store.open(self._path, self._offset, self._stop, self._etag)
        self._body = body
        for name, expected, found in (("size", self._size, body.size), ("etag", self._etag, body.etag)):
            if expected not in (None, "") and found not in (None, "", -1) and expected != found:
                raise ChangedError(f"{self._where()}: {name} is {found}, expected {expected}")
        if self._size is None and body.size is not None and body.size >= 0:
            self._size = body.size
        self._etag = self._etag or body.etag
        if self._size is not None:
            self._stop = self._size if self._stop is None else min(self._stop, self._size)

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def _where(self) -> str:
        return redacted(self._store.address(self._path))

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
