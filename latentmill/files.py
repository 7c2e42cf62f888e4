"""Read the files of one place, local or remote: list, read, read a range. One retry policy, clear errors.

A local path is read with system calls, everything else through fsspec. `Files` pickles, and each process makes its own
client: a client does not survive a fork.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from latentmill.access import descriptors
from latentmill.access.s3_ranges import S3Ranges
from latentmill.errors import AccessError, NotFoundError, OpenError, ReadError, StorageError

T = TypeVar("T")

_OWNERS = count()

ATTEMPTS = 8
BASE_SECONDS = 0.2
CAP_SECONDS = 10.0
"""Eight attempts, with random waits below min(10, 0.2 * 2**i) seconds: 12 s in all on average, 25 s at most."""

_S3_OPTIONS: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
_S3_CONFIG = {"max_pool_connections": 64, "read_timeout": 60}

_ACCESS_CODES = {
    *("AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"),
    *("InvalidToken", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "Forbidden", "403", "401"),
}
_ACCESS_ERRORS = {"NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError", "ProfileNotFound"}
_NOT_FOUND_CODES = {"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "404"}
_CLIENTS = {"aiohttp", "botocore", "aiobotocore", "urllib3", "requests", "gcsfs", "adlfs", "azure", "google"}


class Entry(NamedTuple):
    """One listed file."""

    size: int
    tag: str
    """Changes when the content does."""


class Files:
    """The files under `uri`. Paths are relative to it, with "/" between folders.

    Args:
        uri: a local path or any fsspec URL.
        storage_options: what fsspec takes for the URL. None: the client finds the credentials.
    """

    def __init__(self, uri: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> None:
        self.uri = os.fspath(uri).rstrip("/") or "/"
        self._options = dict(storage_options or {})
        self._client: tuple[int, Any, str, S3Ranges | None] | None = None  # of the process with this id
        scheme = self.uri.partition("://")[0] if "://" in self.uri else ""
        self.root: Path | None = None
        """The folder of a local place."""
        if scheme in ("", "file", "local"):
            path = Path(self.uri.partition("://")[2] if scheme else self.uri).expanduser()
            self.root = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)
        self._scheme = scheme
        self._owner = next(_OWNERS)
        weakref.finalize(self, descriptors.forget, self._owner).atexit = False
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["uri"], state["_options"])  # type: ignore[misc]

    def address(self, path: str) -> str:
        """Return the full address of a path, for messages."""
        return f"{self.uri}/{path}"

    def list(self, folder: str) -> dict[str, Entry]:
        """Return every file below a folder by its path, sorted. A missing folder has no files."""
        return retried(lambda: self._list(folder), self.address(folder))

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes [start, stop) of a file; fewer if the file ends earlier."""

        def attempt() -> bytes:
            if self.root:
                where = self.root / path
                with descriptors.opening(lambda: where.open("rb")) as file:
                    file.seek(start)
                    return file.read(-1 if stop is None else stop - start)
            data: bytes = self._fs.cat_file(self._key(path), start=start or None, end=stop)
            return data

        return retried(attempt, self.address(path))

    def read_into(self, path: str, start: int, views: Sequence[memoryview]) -> None:
        """Fill the views, one after the other, with the bytes from `start` on.

        Raises:
            EOFError: the file ends earlier.
        """
        if self.root:
            retried(lambda: self._preadv(path, start, views), self.address(path))
            return
        key = self._key(path)
        assert self._client
        if (direct := self._client[3]) and direct.read_into(key, start, views):
            return
        length = sum(len(view) for view in views)
        data = memoryview(self.read(path, start, start + length))
        if len(data) < length:
            raise EOFError(f"{self.address(path)} ends at byte {start + len(data)}, before {start + length}")
        for view in views:
            view[:] = data[: len(view)]
            data = data[len(view) :]

    def download(self, path: str, target: Path) -> Path:
        """Return a local file with the content of `path`: the file itself if it is local, else a copy at `target`."""
        if self.root:
            return self.root / path

        def attempt() -> Path:
            self._fs.get_file(self._key(path), str(target))
            return target

        return retried(attempt, self.address(path))

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading and seeking."""
        if self.root:
            where = self.root / path
            return descriptors.opening(lambda: where.open("rb"))
        return self._fs.open(self._key(path), "rb")  # type: ignore[no-any-return]

    def parsed(self, path: str, parse: Callable[[IO[bytes]], T]) -> T:
        """Return what a parser makes of an opened data file.

        Raises:
            OpenError: the file is damaged.
            StorageError: the storage failed.
        """
        try:
            with self.open(path) as source:
                return parse(source)
        except (FileNotFoundError, PermissionError) as error:
            raise _final(error, self.address(path)) or error from error
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, ReadError):
                raise
            where = self.address(path)
            raise OpenError(f"{where} is damaged ({error}): `latentmill verify` says what of it is wrong") from error

    def _list(self, folder: str) -> dict[str, Entry]:
        if self.root:
            return self._scan(folder)
        try:
            self._fs.invalidate_cache()
            found = self._fs.find(self._key(folder.rstrip("/")), detail=True)
        except FileNotFoundError:
            return {}
        prefix = self._key("")
        return {
            path.removeprefix(prefix): Entry(
                info["size"] or 0, str(info.get("ETag") or info.get("mtime") or info.get("LastModified") or "")
            )
            for path, info in sorted(found.items())
        }

    def _scan(self, folder: str) -> dict[str, Entry]:
        assert self.root
        found: dict[str, Entry] = {}
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if entry.is_file():
                        facts = entry.stat()
                        found[folder + entry.name] = Entry(facts.st_size, str(facts.st_mtime_ns))
        except FileNotFoundError:
            return {}
        return dict(sorted(found.items()))

    def _preadv(self, path: str, start: int, views: Sequence[memoryview]) -> None:
        assert self.root
        file = descriptors.kept_open(self._owner, self.root / path)  # this reference keeps it open until all is read
        left = [view for view in views if len(view)]
        while left:
            count = os.preadv(file.number, left[:512], start)
            if not count:
                raise EOFError(f"{self.address(path)} ends at byte {start}, before {start + sum(map(len, left))}")
            start += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]

    @property
    def _fs(self) -> Any:
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = (os.getpid(), *self._connect())
            return self._client[1]

    def _connect(self) -> tuple[Any, str, S3Ranges | None]:
        options = dict(self._options)
        if self._scheme in ("s3", "s3a"):
            # `retried` is the only retry loop: the client's own is off, or attempts would multiply.
            config = _S3_CONFIG | {"retries": {"mode": "standard", "total_max_attempts": 1}}
            options = _S3_OPTIONS | options | {"config_kwargs": config | options.get("config_kwargs", {})}
        try:
            filesystem, root = url_to_fs(self.uri, **options)
        except (ImportError, ValueError) as error:
            raise StorageError(f"{self.uri}: {error}") from error
        if self._scheme not in ("s3", "s3a"):
            return filesystem, root, None
        filesystem.retries = 1
        return filesystem, root, S3Ranges(filesystem) if S3Ranges.fits(self._options) else None

    def _key(self, path: str) -> str:
        self._fs  # noqa: B018 (connects)
        assert self._client
        return f"{self._client[2].rstrip('/')}/{path}"


def retried(attempt: Callable[[], T], what: str) -> T:
    """Return `attempt()`. Retry after faults that may pass: throttling, time-outs, resets, cut bodies."""
    for failures in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except (ReadError, EOFError):
            raise
        except Exception as error:
            final = _final(error, what)
            if final or failures == ATTEMPTS:
                raise (final or StorageError(f"{what}: {type(error).__name__}: {error}")) from error
        time.sleep(random.uniform(0, min(CAP_SECONDS, BASE_SECONDS * 2**failures)))
    raise AssertionError


def _final(error: Exception, what: str) -> Exception | None:
    """Return the error to raise if a retry cannot help; None if it may."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or code in _NOT_FOUND_CODES:
        return NotFoundError(f"{what} does not exist")
    if isinstance(error, PermissionError) or code in _ACCESS_CODES or type(error).__name__ in _ACCESS_ERRORS:
        return AccessError(f"{what}: access was refused: {code or error}")
    module = type(error).__module__.partition(".")[0]
    passing = isinstance(error, OSError | TimeoutError | asyncio.TimeoutError) or module in _CLIENTS
    return None if passing or isinstance(error, fsspec.exceptions.FSTimeoutError) else error
