"""Read one object from start to end, in one request that is resumed if the connection breaks."""

from __future__ import annotations

import io
import shutil
import time
from types import TracebackType
from typing import Any

from latentmill.errors import ChangedError, StorageError, TransientError
from latentmill.store.addresses import redacted
from latentmill.store.objects import Body, Objects
from latentmill.store.retry import Backoff

READ_BYTES = 1 << 20
"""Bytes of one read. Smaller reads cost more switches to the client's thread, larger ones cost memory."""


PATIENCE_SECONDS = 120.0


LEAST_RATE = 16 << 10
"""Bytes per second. A stream fails if the total time of waiting for it exceeds PATIENCE_SECONDS and also the time that
the received bytes take at this rate. So a server that sends a byte now and then cannot block a worker for ever."""


class Stream(io.RawIOBase):
    """Bytes [start, stop) of one object, in order, from one GET; after a fault a new GET continues at the offset.

    Every GET after the first requires the same ETag, so all bytes are of the same object. The stream ends only after
    all bytes were received. Use it in a `with`, or through io.BufferedReader.

    Raises:
        ChangedError: the object's size or ETag is not the expected one.
        NotFoundError, AccessError: as reported by the store.
        StorageError: it failed repeatedly without a byte in between, ended early, or is too slow (LEAST_RATE).
    """

    def __init__(
        self,
        store: Objects,
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
        # The inherited method reads 8 KiB at a time, and each read is a switch to the client's thread.
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
        """Request the missing bytes, and check that the object is the expected one."""
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
