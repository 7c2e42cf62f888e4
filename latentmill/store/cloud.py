"""Read Google Cloud Storage and Azure Blob Storage through obstore (extra `cloud`).

Credentials come from the standard environment of each cloud. obstore's own retries are switched off, because retry.py
retries. obstore does not accept names with control characters or with empty folder names (a//b); they raise a
StorageError.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from latentmill.errors import AccessError, ChangedError, LatentmillError, NotFoundError, StorageError, TransientError
from latentmill.store.addresses import redacted
from latentmill.store.objects import Body, Entry, in_pieces, is_at
from latentmill.store.retry import retried

if TYPE_CHECKING:
    from obstore import GetOptions

SCHEMES = frozenset({"gs", "az"})
"""URLs that this store takes: `gs://bucket/prefix` and `az://container/prefix`."""

CHUNK_BYTES = 1 << 20
"""Smallest piece of a streamed body, in bytes."""


class CloudObjects:
    """Objects under `scheme://bucket/prefix`. It stores names only: each process creates its client once."""

    def __init__(self, bucket_url: str, prefix: str) -> None:
        self.bucket_url = bucket_url
        """Store the names; `bucket_url` is `gs://bucket` or `az://container`."""
        self.prefix = prefix
        """"" or a prefix that ends in "/"."""

    def entries(self, path: str) -> Iterator[Entry]:
        entries = retried(lambda: self._below(path))
        if path and not path.endswith("/"):  # the listing of a prefix omits an object with exactly that name
            with contextlib.suppress(NotFoundError):
                entries.append(retried(lambda: self.head(path)))
        yield from sorted(entry for entry in entries if is_at(entry.path, path))

    def _below(self, path: str) -> list[Entry]:
        import obstore

        with translated(f"list {self.address(path)}"):
            folder = self.prefix + path.rstrip("/")
            found = [item for page in obstore.list(self.client(), prefix=folder or None) for item in page]
        return [_entry(item["path"].removeprefix(self.prefix), item) for item in found]

    def head(self, path: str) -> Entry:
        import obstore

        with translated(self.address(path)):
            return _entry(path, obstore.head(self.client(), self.prefix + path))

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        import obstore

        options: GetOptions = {"if_match": f'"{etag}"'} if etag else {}
        if stop is not None:
            options["range"] = (start, stop)
        elif start:
            options["range"] = {"offset": start}
        with translated(self.address(path)):
            result = obstore.get(self.client(), self.prefix + path, options=options)
            meta, stream = result.meta, result.stream(min_chunk_size=CHUNK_BYTES)

        def pieces() -> Iterator[Any]:
            with translated(self.address(path)):
                yield from stream

        return Body(size=meta["size"], etag=_plain(meta["e_tag"]), readinto=in_pieces(pieces()), close=lambda: None)

    def address(self, path: str) -> str:
        return f"{self.bucket_url}/{self.prefix}{path}"

    def client(self) -> Any:
        """Return the client of this process.

        Raises:
            AccessError: there are no credentials, or they are not understood.
        """
        return client(self.bucket_url)


@cache
def client(bucket_url: str) -> Any:
    """Return the client of this process, which all its threads share.

    Raises:
        AccessError: there are no credentials, or they are not understood.
        StorageError: obstore is not installed, or was used before this process was forked.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise StorageError(f"{bucket_url} needs obstore: pip install obstore") from error
    if _users and os.getpid() not in _users:
        raise StorageError(f"{bucket_url}: obstore does not survive a fork: use multiprocessing_context='spawn'")
    _users.add(os.getpid())
    # Plain HTTP is allowed only if the user's endpoint, such as an emulator, uses it.
    is_plain = os.environ.get("AZURE_STORAGE_ENDPOINT", "").startswith("http://")
    client = {"timeout": timedelta(seconds=600), "connect_timeout": timedelta(seconds=20), "allow_http": is_plain}
    retry = {"max_retries": 0, "retry_timeout": timedelta(seconds=60)}
    try:
        return from_url(bucket_url, retry_config=retry, client_options=client)  # type: ignore[call-overload]
    except BaseError as error:  # no account, no credentials, a wrong name
        raise AccessError(f"{bucket_url}: {str(error).splitlines()[0]}") from error


_users: set[int] = set()
"""The process that has used obstore. Its children by fork inherit this, and the runtime of obstore without threads."""

os.register_at_fork(after_in_child=client.cache_clear)


def _entry(path: str, meta: Any) -> Entry:
    return Entry(path=path, size=meta["size"], etag=_plain(meta["e_tag"]), mtime=meta["last_modified"].timestamp())


def _plain(etag: str | None) -> str:
    """Return an ETag without quotes, because listings and heads of the same service differ in them."""
    return (etag or "").strip('"')


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    from obstore import exceptions

    try:
        yield
    except LatentmillError:
        raise
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise NotFoundError(f"{redacted(what)}: not found") from error
    except exceptions.PreconditionError as error:
        raise ChangedError(f"{redacted(what)}: it is another object now") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
        raise AccessError(f"{redacted(what)}: {type(error).__name__}") from error
    except (exceptions.InvalidPathError, exceptions.NotSupportedError, ValueError) as error:
        why = f"{type(error).__name__}, as of a name with control characters or an empty folder name (a//b)"
        raise StorageError(f"{redacted(what)}: {why}") from error
    except exceptions.UnknownConfigurationKeyError as error:
        raise AccessError(f"{redacted(what)}: {error}") from error
    except (exceptions.BaseError, OSError) as error:
        # The text may contain a signed URL, so the message has only the class.
        raise TransientError(f"{redacted(what)}: {type(error).__name__}") from error
