"""Read any other fsspec URL (memory://, gs:// and az:// without obstore, chains such as zip://a::s3://b)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from latentmill.errors import AccessError, LatentmillError, NotFoundError, StorageError, TransientError
from latentmill.store.addresses import redacted, scheme_of
from latentmill.store.objects import Body, Entry, in_pieces, is_at
from latentmill.store.retry import retried


class OtherObjects:
    """Objects under `root`, a URL, for one process."""

    def __init__(self, root: str, options: dict[str, Any] | None = None) -> None:
        self.root = root
        self._options = options or {}
        """What fsspec takes for the URL."""
        self._client: tuple[int, Any, str] | None = None

    def entries(self, path: str) -> Iterator[Entry]:
        filesystem, base = self._open_root()
        found = retried(lambda: self._find(filesystem, f"{base}/{path}".rstrip("/")))
        for full in sorted(found):
            name = full.removeprefix(base).lstrip("/")
            if found[full].get("type") == "file" and is_at(name, path):
                yield _entry(name, found[full])

    def _find(self, filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
        with translated(f"list {path}"):
            found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
        return found

    def head(self, path: str) -> Entry:
        filesystem, base = self._open_root()
        with translated(self.address(path)):
            found = filesystem.info(f"{base}/{path}")
        if found.get("type") == "directory":
            raise NotFoundError(f"{self.address(path)} is a folder")
        return _entry(path, found)

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        filesystem, base = self._open_root()
        if stop is not None and not etag:  # an opened file would fetch a whole block, but it knows its ETag
            return self._piece(path, start, stop)
        with translated(self.address(path)):
            file = filesystem.open(f"{base}/{path}", "rb")
            if start:
                file.seek(start)
            details = getattr(file, "details", None)

        def readinto(view: memoryview) -> int:
            with translated(self.address(path)):
                piece = file.read(len(view))
            view[: len(piece)] = piece
            return len(piece)

        entry = _entry(path, details) if isinstance(details, dict) else None
        size = entry.size if entry else getattr(file, "size", None)
        return Body(size=size, etag=entry.etag if entry else "", readinto=readinto, close=file.close)

    def _piece(self, path: str, start: int, stop: int) -> Body:
        filesystem, base = self._open_root()
        with translated(self.address(path)):
            data = filesystem.cat_file(f"{base}/{path}", start=start, end=stop)
        size = start + len(data) if len(data) < stop - start else None
        return Body(size=size, etag="", readinto=in_pieces(iter([data])), close=lambda: None)

    def address(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _open_root(self) -> tuple[Any, str]:
        """Return the client of this process, and the root in its words.

        Raises:
            StorageError: the scheme is unknown, or its package is not installed.
        """
        from fsspec.core import url_to_fs

        if self._client is None or self._client[0] != os.getpid():
            try:
                filesystem, base = url_to_fs(self.root, **{"use_listings_cache": False} | self._options)
            except (ValueError, ImportError) as error:
                hint = ", or: pip install obstore" if scheme_of(self.root) in ("gs", "az") else ""
                raise StorageError(f"{redacted(self.root)}: {error}{hint}") from error
            self._client = os.getpid(), filesystem, base.rstrip("/")
        return self._client[1:]


def _entry(path: str, info: dict[str, Any]) -> Entry:
    stamp = next((info[name] for name in ("mtime", "updated", "last_modified", "created") if info.get(name)), 0.0)
    mtime = stamp.timestamp() if isinstance(stamp, datetime) else stamp if isinstance(stamp, float) else 0.0
    etag = next((str(info[name]) for name in ("etag", "ETag", "md5Hash") if info.get(name)), "")
    size = -1 if info.get("size") is None else int(info["size"])
    return Entry(path=path, size=size, etag=etag.strip('"') or (f"{mtime}-{size}" if mtime else ""), mtime=mtime)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    try:
        yield
    except LatentmillError:
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
