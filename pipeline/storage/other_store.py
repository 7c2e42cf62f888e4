"""Any other fsspec URL (gs://, az://, memory://, https://) as a store: read, list, last-wins writes.

This store never claims create-only: fsspec's default for `mode="create"` checks for an object and then writes, which
passes a test but not a race. Start only one run at a time, as the log says.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import AccessError, ConfigError, NotFoundError, StorageError, TransientError
from pipeline.storage.addresses import redacted
from pipeline.storage.retry import retried
from pipeline.storage.store import Body, Entry, is_at


class OtherStore:
    """Objects under `root`, a URL. It stores the URL only: fsspec keeps one client per process."""

    def __init__(self, root: str) -> None:
        self.root = root

    def entries(self, path: str) -> Iterator[Entry]:
        filesystem, base = self._open_root()
        found = retried(lambda: self._find(filesystem, f"{base}/{path}".rstrip("/")))
        for full in sorted(found):
            name = full.removeprefix(base).lstrip("/")
            if found[full].get("type") == "file" and is_at(name, path):
                yield _entry(name, found[full])

    def _find(self, filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
        with _translated(f"list {path}"):
            found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
        return found

    def head(self, path: str) -> Entry:
        filesystem, base = self._open_root()
        with _translated(self.address(path)):
            found = filesystem.info(f"{base}/{path}")
        if found.get("type") == "directory":
            raise NotFoundError(f"{self.address(path)} is a folder")
        return _entry(path, found)

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        del stop, etag
        filesystem, base = self._open_root()
        with _translated(self.address(path)):
            file = filesystem.open(f"{base}/{path}", "rb")
            if start:
                file.seek(start)
            details = getattr(file, "details", None)

        def readinto(view: memoryview) -> int:
            with _translated(self.address(path)):
                piece = file.read(len(view))
            view[: len(piece)] = piece
            return len(piece)

        entry = _entry(path, details) if isinstance(details, dict) else None
        size = entry.size if entry else getattr(file, "size", None)
        return Body(size=size, etag=entry.etag if entry else "", readinto=readinto, close=file.close)

    def write(self, path: str, data: bytes | Path, *, create: bool) -> bool:
        filesystem, base = self._open_root()
        with _translated(self.address(path)):
            if create and filesystem.exists(f"{base}/{path}"):
                return False
            if isinstance(data, bytes):
                filesystem.pipe_file(f"{base}/{path}", data)
            else:
                filesystem.put_file(str(data), f"{base}/{path}")
        return True

    def remove(self, paths: Iterable[str]) -> None:
        filesystem, base = self._open_root()
        for path in paths:
            with contextlib.suppress(NotFoundError), _translated(self.address(path)):
                filesystem.rm_file(f"{base}/{path}")

    def remove_folders(self, folder: str) -> None:
        """Do nothing: object stores have no folders."""

    def honours_create(self) -> bool:
        return False

    def now(self) -> float:
        """Return the time of this machine's clock: fsspec has no other."""
        return time.time()

    def address(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _open_root(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            filesystem, base = url_to_fs(self.root, use_listings_cache=False)
        except (ValueError, ImportError) as error:  # an unknown scheme, or its package is not installed
            raise ConfigError(f"{redacted(self.root)}: {error}") from error
        return filesystem, base.rstrip("/")


def _entry(path: str, info: dict[str, Any]) -> Entry:
    stamp = next((info[name] for name in ("mtime", "updated", "last_modified", "created") if info.get(name)), 0.0)
    mtime = stamp.timestamp() if isinstance(stamp, datetime) else stamp if isinstance(stamp, float) else 0.0
    etag = next((str(info[name]) for name in ("etag", "ETag", "md5Hash") if info.get(name)), "")
    size = -1 if info.get("size") is None else int(info["size"])
    return Entry(path=path, size=size, etag=etag.strip('"') or (f"{mtime}-{size}" if mtime else ""), mtime=mtime)


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise _missing(error)(f"{redacted(what)}: {_why(error)}") from error
    except PermissionError as error:
        raise AccessError(f"{redacted(what)}: {type(error).__name__}") from error
    except (TimeoutError, ConnectionError) as error:
        raise TransientError(f"{redacted(what)}: {type(error).__name__}") from error
    except Exception as error:
        # Each fsspec implementation raises its own classes; their text may contain a signed URL.
        raise TransientError(f"{redacted(what)}: {type(error).__name__}") from error


def _missing(error: FileNotFoundError) -> type[StorageError]:
    """Return the error class of a FileNotFoundError. Over HTTP, fsspec raises it for any failure before the headers."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status in (401, 403):
        return AccessError
    is_of_http = type(cause).__module__.startswith("aiohttp") or isinstance(cause, ConnectionError | TimeoutError)
    return TransientError if is_of_http and status not in (404, 410) else NotFoundError


def _why(error: FileNotFoundError) -> str:
    status = getattr(error.__cause__, "status", None)
    return f"HTTP status {status}" if status else f"not found ({type(error.__cause__ or error).__name__})"
