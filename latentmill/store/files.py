"""Read the files of one place, local or remote: list, read, read a range. One retry policy, clear errors.

A local path is read with system calls, S3 through s3fs and by ranges from the socket, `gs://` and `az://` through
obstore where it is installed, everything else through fsspec. `Files` pickles, and each process makes its own client: a
client does not survive a fork.
"""

from __future__ import annotations

import io
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import pyarrow as pa

from latentmill.errors import AccessError, NotFoundError, OpenError, ReadError, StorageError, TransientError
from latentmill.store import cloud, descriptors
from latentmill.store.objects import Entry, Objects
from latentmill.store.other import OtherObjects
from latentmill.store.range_file import RangeFile
from latentmill.store.retry import retried
from latentmill.store.s3_ranges import S3Ranges
from latentmill.store.stream import READ_BYTES, Stream

T = TypeVar("T")

_OWNERS = count()

_CONNECTIONS = 64
"""Most connections to S3 of a process."""

_AHEAD_BYTES = 5 << 20
"""How much of a remote file that was opened is read at least: a parser asks for many small pieces, one after the
other."""


class Remote(NamedTuple):
    """How one process reaches a remote place."""

    pid: int
    objects: Objects
    ranges: S3Ranges | None = None
    """Reads byte ranges faster than `objects` do, or not at all."""


class Files:
    """The files under `uri`. Paths are relative to it, with "/" between folders.

    Args:
        uri: a local path or any fsspec URL.
        storage_options: what fsspec takes for the URL. None: the client finds the credentials.
    """

    def __init__(self, uri: str | os.PathLike[str], storage_options: dict[str, Any] | None = None) -> None:
        self.uri = os.fspath(uri).rstrip("/") or "/"
        self._options = dict(storage_options or {})
        self._remote: Remote | None = None
        self._scheme = self.uri.partition("://")[0] if "://" in self.uri else ""
        self.root: Path | None = None
        """The folder of a local place."""
        if self._scheme in ("", "file", "local"):
            path = Path(self.uri.partition("://")[2] if self._scheme else self.uri).expanduser()
            self.root = Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would follow links)
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
        try:
            if self.root:
                return self._on_disk(folder, lambda: self._scan(folder))
            return {entry.path: entry for entry in self.remote.objects.entries(folder)}
        except NotFoundError:
            return {}

    def read(self, path: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes [start, stop) of a file; fewer if the file ends earlier."""
        if not self.root:
            with self._stream(path, start, stop) as body:
                return body.readall()
        where = self.root / path

        def attempt() -> bytes:
            with descriptors.opening(lambda: where.open("rb")) as file:
                file.seek(start)
                return file.read(-1 if stop is None else stop - start)

        return self._on_disk(path, attempt)

    def read_into(self, path: str, start: int, views: Sequence[memoryview]) -> None:
        """Fill the views, one after the other, with the bytes from `start` on.

        Raises:
            EOFError: the file ends earlier.
        """
        if self.root:
            self._on_disk(path, lambda: self._preadv(path, start, views))
            return
        if (ranges := self.remote.ranges) and ranges.read_into(path, start, views):
            return
        stop = start + sum(len(view) for view in views)
        with self._stream(path, start, stop) as body:
            for view in views:
                left = view
                while len(left):
                    if not (read := body.readinto(left)):
                        raise EOFError(f"{self.address(path)} ends at byte {start}, before {stop}")
                    left, start = left[read:], start + read

    def download(self, path: str, target: Path) -> Path:
        """Return a local file with the content of `path`: the file itself if it is local, else a copy at `target`."""
        if self.root:
            return self.root / path
        with self._stream(path) as body, target.open("wb") as file:
            shutil.copyfileobj(body, file, READ_BYTES)
        return target

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading and seeking."""
        if self.root:
            where = self.root / path
            return descriptors.opening(lambda: where.open("rb"))
        size = retried(lambda: self.remote.objects.head(path)).size
        return io.BufferedReader(RangeFile(lambda start, stop: self.read(path, start, stop), size), _AHEAD_BYTES)

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
            raise _error_of(error, self.address(path)) from error
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, ReadError):
                raise
            where = self.address(path)
            raise OpenError(f"{where} is damaged ({error}): `latentmill verify` says what of it is wrong") from error

    @property
    def survives_fork(self) -> bool:
        """Whether a process that was forked from one that has read here can read here, too."""
        return self._scheme not in cloud.SCHEMES or bool(self._options) or not find_spec("obstore")

    @property
    def remote(self) -> Remote:
        """How this process reaches a place that is not local."""
        with self._lock:
            if self._remote is None or self._remote.pid != os.getpid():
                self._remote = self._connect()
            return self._remote

    def _connect(self) -> Remote:
        if self._scheme in ("s3", "s3a"):
            return self._connect_s3()
        place = self.uri.partition("://")[2]
        if not self.survives_fork:
            bucket, _, prefix = place.partition("/")
            return Remote(os.getpid(), cloud.CloudObjects(f"{self._scheme}://{bucket}", f"{prefix}/" if prefix else ""))
        return Remote(os.getpid(), OtherObjects(self.uri, self._options))

    def _connect_s3(self) -> Remote:
        from latentmill.store import s3  # its packages take a second to import

        try:
            filesystem = s3.client(_CONNECTIONS, skip_instance_cache=True, **self._options)
            bucket, key, _ = filesystem.split_path(self.uri.partition("://")[2])
        except (ImportError, ValueError) as error:
            raise StorageError(f"{self.uri}: {error}") from error
        objects = s3.S3Objects(bucket, f"{key}/" if key else "", lambda: filesystem)
        ranges = S3Ranges(filesystem, f"{bucket}/{objects.prefix}") if S3Ranges.fits(self._options) else None
        return Remote(os.getpid(), objects, ranges)

    def _stream(self, path: str, start: int = 0, stop: int | None = None) -> Stream:
        return Stream(self.remote.objects, path, start=start, stop=stop)

    def _on_disk(self, path: str, attempt: Callable[[], T]) -> T:
        """Return `attempt()`, retried after faults of the disk that may pass."""

        def tried() -> T:
            try:
                return attempt()
            except OSError as error:
                raise _error_of(error, self.address(path)) from error

        return retried(tried)

    def _scan(self, folder: str) -> dict[str, Entry]:
        assert self.root
        found: dict[str, Entry] = {}
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                if entry.is_file():
                    facts, path = entry.stat(), folder + entry.name
                    found[path] = Entry(path, facts.st_size, str(facts.st_mtime_ns), facts.st_mtime)
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


def _error_of(error: OSError, what: str) -> StorageError:
    """Return the error that a fault of the local disk is."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return NotFoundError(f"{what} does not exist")
    if isinstance(error, PermissionError):
        return AccessError(f"{what}: access was refused: {error}")
    return TransientError(f"{what}: {type(error).__name__}: {error}")
