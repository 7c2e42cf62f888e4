"""A folder on this machine (or a mounted disk) as a store, with the promises of `pipeline.storage`."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from pipeline.errors import AccessError, ChangedError, NotFoundError, StorageError, TransientError
from pipeline.storage.store import TEMPORARY, Body, Entry

log = logging.getLogger(__name__)


class LocalStore:
    """Files under `root`. A file appears whole or not at all: unnamed file, fsync, link (or named file, rename)."""

    def __init__(self, root: str) -> None:
        self.root = root

    def entries(self, path: str) -> Iterator[Entry]:
        """List the file at `path`, or every file below it. Memory: the names of one directory per level."""
        pending = [path if path == "" or path.endswith("/") or self._full(path).is_file() else f"{path}/"]
        while pending:
            path = pending.pop()
            if path == "" or path.endswith("/"):
                pending.extend(sorted(self._children(path), reverse=True))
            else:
                with contextlib.suppress(NotFoundError):  # deleted after its directory was read
                    yield self.head(path)

    def _children(self, folder: str) -> Iterator[str]:
        # A directory sorts as "name/", so that the order is that of the full paths, as in an object store.
        try:
            with _translated(folder or self.root), os.scandir(self._full(folder)) as listing:
                for child in listing:
                    if child.is_dir(follow_symlinks=False):
                        yield f"{folder}{child.name}/"
                    elif child.is_symlink() and _leads_nowhere(child.path):
                        log.warning("%s is skipped: its link target does not exist", child.path)
                    elif child.is_file():
                        yield f"{folder}{child.name}"
        except NotFoundError:
            return

    def head(self, path: str) -> Entry:
        with _translated(path):
            status = self._full(path).stat()
        _check_file(self._full(path), status)
        return _entry(path, status)

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        del stop, etag  # the caller stops at `stop`, and compares the etag with that of the Body
        full = self._full(path)
        with _translated(path):
            _check_file(full, full.stat())  # before the open, because opening a device may have an effect
            file = io.FileIO(full, opener=_without_waiting)
            status = os.fstat(file.fileno())
            file.seek(start)
        entry = _entry(path, status)

        def readinto(view: memoryview) -> int | None:
            with _translated(path):
                count = file.readinto(view)
                now = _entry(path, os.fstat(file.fileno()))
            # After the read: a write in place changes the modification time first, and then the bytes.
            if now.etag != entry.etag:
                raise ChangedError(f"{full} was written to while it was read: {entry.etag} became {now.etag}")
            return count

        return Body(size=entry.size, etag=entry.etag, readinto=readinto, close=file.close)

    def write(self, path: str, data: bytes | Path, *, create: bool) -> bool:
        """Write `data` to `path`. With `create`, return False and change nothing if a file is there."""
        target = self._full(path)
        try:
            with _translated(path):
                target.parent.mkdir(parents=True, exist_ok=True)
                folder = os.open(target.parent, os.O_RDONLY)
                try:
                    if not self._publish(target, folder, data, create=create):
                        return False
                    os.fsync(folder)  # makes the new name durable too
                finally:
                    os.close(folder)
        except NotFoundError as error:  # another process removed the empty folder: a retry makes it again
            raise TransientError(str(error)) from error
        return True

    def _publish(self, target: Path, folder: int, data: bytes | Path, *, create: bool) -> bool:
        if create or not target.exists():
            with _unnamed(target.parent, data) as source:
                if source is not None:
                    try:
                        # With a folder's descriptor this is linkat(), which follows the symbolic link in /proc.
                        os.link(source, target.name, dst_dir_fd=folder)
                    except FileExistsError:
                        if create:
                            return False
                    else:
                        return True
        named = self._named(data)
        try:
            if create:
                os.link(named, target)
            else:
                named.replace(target)
        except FileExistsError:
            return False
        finally:
            named.unlink(missing_ok=True)
        return True

    def _named(self, data: bytes | Path) -> Path:
        """Write and sync a copy of `data` on the same file system as the target."""
        folder = self._full(TEMPORARY)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                _fill(file, data)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            with contextlib.suppress(NotFoundError), _translated(path):
                self._full(path).unlink()

    def remove_folders(self, folder: str) -> None:
        """Remove the empty directories at and below `folder`. Directories that are not empty stay, without an error."""
        for parent, _, _ in os.walk(self._full(folder), topdown=False):
            with contextlib.suppress(OSError):
                Path(parent).rmdir()

    def honours_create(self) -> bool:
        """Return whether this file system has hard links, which make create-only atomic."""
        with _translated(TEMPORARY):
            first = self._named(b"")
            second = first.with_suffix(".link")
            try:
                os.link(first, second)
            except OSError:
                return False
            finally:
                first.unlink(missing_ok=True)
                second.unlink(missing_ok=True)
        return True

    def now(self) -> float:
        """Return the time of the file system's clock (on a network mount, the server's), in seconds since the epoch."""
        with _translated(TEMPORARY):
            probe = self._named(b"")
            try:
                return probe.stat().st_mtime
            finally:
                probe.unlink(missing_ok=True)

    def address(self, path: str) -> str:
        return str(self._full(path))

    def _full(self, path: str) -> Path:
        return Path(self.root, path)


def _leads_nowhere(link: str) -> bool:
    try:
        Path(link).stat()
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return False


def _without_waiting(path: str, flags: int) -> int:
    """Open without blocking, because a file may have become a pipe, and opening a pipe waits for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_file(full: Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        named = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise NotFoundError(f"{full} is {named.get(kind, 'a device')}, not a file")


def _entry(path: str, status: os.stat_result) -> Entry:
    # A disk has no ETag; modification time and size take its place, as in rsync.
    etag = f"{status.st_mtime_ns:x}-{status.st_size:x}"
    return Entry(path=path, size=status.st_size, etag=etag, mtime=status.st_mtime)


@contextlib.contextmanager
def _unnamed(folder: Path, data: bytes | Path) -> Iterator[str | None]:
    """Yield the path of a synced copy of `data` without a name, or None if the file system has no unnamed files.

    A killed process leaves no unnamed file behind.
    """
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except (OSError, AttributeError):  # NFS, old overlays; macOS
        yield None
        return
    with os.fdopen(descriptor, "wb") as file:
        _fill(file, data)
        yield f"/proc/self/fd/{descriptor}"


def _fill(file: IO[bytes], data: bytes | Path) -> None:
    if isinstance(data, bytes):
        file.write(data)
    else:
        with data.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFoundError(f"{path}: {error.strerror} ({error.filename})") from error
    except PermissionError as error:
        raise AccessError(f"{path}: {error.strerror} ({error.filename})") from error
    except ValueError as error:  # a name with a NUL byte
        raise NotFoundError(f"{path!r}: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise NotFoundError(f"{path}: {error.strerror}") from error
        raise StorageError(f"{path}: {error.strerror or error}") from error
