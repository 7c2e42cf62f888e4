"""Keep files on a local disk that no other user can have written.

The cache may lie on a scratch disk that all users of a machine share, and its names can be computed. So each file is
opened without following a link, and its owner and mode are looked at before a byte of it is believed.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from latentmill.errors import OpenError, ReadError
from latentmill.store.descriptors import opening

KEPT_SECONDS = 30 * 86400
"""What nobody has opened for this long is deleted from the cache, unless a process uses it."""

_REMEDY = "set LATENTMILL_CACHE to a folder of your own"
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe in its place must not make us wait


def own_folder(place: str | os.PathLike[str] | None) -> Path:
    """Return a folder that this user alone may write: `place`; or a folder in it, if others may write `place`, too.

    None: $LATENTMILL_CACHE, or else a folder of this user in the folder for temporary files.

    Raises:
        OpenError: it cannot be made, or belongs to somebody else.
    """
    given = place or os.environ.get("LATENTMILL_CACHE")
    folder = Path(given or tempfile.gettempdir()).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if given and _is_ours(folder):
            return folder
        folder /= f"latentmill-{os.geteuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_ours(folder):
            return folder
    except OSError as error:
        raise OpenError(f"no cache at {folder}: {error.strerror}: {_REMEDY}") from error
    raise OpenError(f"{folder} belongs to somebody else, or others may write it: {_REMEDY}")


def _is_ours(folder: Path) -> bool:
    facts = folder.stat()
    owners = {facts.st_uid, folder.lstat().st_uid}  # of the folder, and of a link that leads to it
    return owners == {os.geteuid()} and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def open_own(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file of this user that nobody else may write, and return its descriptor.

    Raises:
        PermissionError: it is a link, no file, or somebody else's, or others may write it.
    """
    try:
        number = opening(lambda: os.open(path, flags | _OPEN, 0o600))
    except OSError as error:
        if path.is_symlink():
            raise PermissionError(f"{path} is a link") from error
        raise
    facts = os.fstat(number)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        os.close(number)
        raise PermissionError(f"{path} is not a file that this user alone may write")
    return number


def create(path: Path) -> None:
    """Make an empty file that this user alone may read and write. Raises FileExistsError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600))


def read(path: Path) -> bytes:
    """Return the content of a file. Raises PermissionError as `open_own` does."""
    with os.fdopen(open_own(path), "rb") as file:
        return file.read()


def mapped(path: Path) -> tuple[int, pa.Buffer]:
    """Map a file into memory. Return a descriptor, to be closed by the caller, and the content.

    The file counts as used, so `sweep` keeps it, as long as the content is referred to.
    """
    number = open_own(path)
    try:
        with contextlib.suppress(OSError):  # a disk without locks
            fcntl.flock(number, fcntl.LOCK_SH)
        if not os.fstat(number).st_nlink:
            raise FileNotFoundError(f"{path} was just deleted")
        # The map keeps a duplicate of the descriptor, and with it the lock.
        return number, pa.py_buffer(mmap.mmap(number, 0, prot=mmap.PROT_READ))
    except BaseException:
        os.close(number)
        raise


def discard(path: Path) -> None:
    """Delete a file, a link or a folder of the cache. Nobody sees a part of a folder.

    Raises:
        OpenError: it cannot be deleted.
    """
    try:
        aside = path.with_name(f"building-{uuid.uuid4().hex}")
        path.rename(aside)
        shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise OpenError(f"{path} is somebody else's, and cannot be deleted: {error.strerror}: {_REMEDY}") from error


@contextlib.contextmanager
def building(cache: Path) -> Iterator[Path]:
    """Give a new folder of the cache, and delete it at the end unless it was renamed.

    Raises:
        OpenError: the cache cannot be written.
    """
    folder = cache
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"building-{uuid.uuid4().hex}-", dir=cache))
        yield folder
    except OSError as error:
        if isinstance(error, ReadError):
            raise
        raise OpenError(f"the cache {cache} cannot be written: {error}: {_REMEDY}, or make room") from error
    finally:
        if folder != cache:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process of this machine build while the others wait.

    The kernel frees the lock when a process dies. On a disk without locks, several processes build the same.
    """
    try:
        number = open_own(path, os.O_RDWR | os.O_CREAT)
    except PermissionError:
        discard(path)
        number = open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def sweep(cache: Path) -> None:
    """Delete what nobody has opened for KEPT_SECONDS, and no process uses."""
    for path in cache.iterdir():
        with contextlib.suppress(OSError, OpenError):
            is_kind = path.name.startswith(("index-", "building-"))
            if is_kind and time.time() - path.lstat().st_mtime > KEPT_SECONDS:
                _discard_unused(path)


def _discard_unused(path: Path) -> None:
    is_folder = path.is_dir() and not path.is_symlink()
    with contextlib.ExitStack() as locks:
        for file in [*path.iterdir()] if is_folder else [path]:
            number = open_own(file, os.O_RDWR)
            locks.callback(os.close, number)
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError while a process uses it
        if time.time() - path.lstat().st_mtime > KEPT_SECONDS:  # nobody opened it meanwhile
            discard(path)
