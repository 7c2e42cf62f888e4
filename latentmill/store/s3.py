"""Read a prefix of an S3 bucket through s3fs, one request a call.

s3fs provides the event loop, the client and the standard chain of credentials and endpoints (environment, profile,
instance role). The requests are made by this module, because the file layer of s3fs loses the offset that a resume
needs, caches listings, and copies twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError

from latentmill.errors import AccessError, ChangedError, NotFoundError, StorageError, TransientError
from latentmill.store.event_loop import fill, finished
from latentmill.store.objects import Body, Entry, is_at
from latentmill.store.retry import retried

_TRANSIENT_CODES = frozenset(
    {
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "RequestTimeout",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "OperationAborted",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
    }
)
_ACCESS_CODES = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "AccountProblem",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "AuthorizationHeaderMalformed",
        "InvalidObjectState",
    }
)
_NO_ACCESS = (NoCredentialsError, PartialCredentialsError, NoAuthTokenError, ProfileNotFound)
_PASSING = (
    # botocore's ConnectionError is not Python's ConnectionError, which is also an OSError.
    *(HTTPClientError, BotoConnectionError, ResponseParserError, aiohttp.ClientError, TimeoutError, ConnectionError),
)


def client(connections: int = 32, **options: Any) -> Any:
    """Return a client of s3fs. fsspec keeps one instance per process, thread and arguments, and a new one after a fork.

    Args:
        connections: most connections at once.
        options: what s3fs takes.
    """
    from s3fs import S3FileSystem

    config = {
        # retry.py alone retries. read_timeout: a first byte later than 15 s, the default, is not rare.
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "max_pool_connections": connections,
        "read_timeout": 60,
    }
    fixed = {"use_listings_cache": False, "config_kwargs": config | options.pop("config_kwargs", {})}
    filesystem = S3FileSystem(**fixed | options)
    filesystem.retries = 1
    return filesystem


class S3Objects:
    """Objects of `bucket` under `prefix` ("" or ending in "/"). Stores names only, so it pickles and can be forked."""

    def __init__(self, bucket: str, prefix: str, connect: Callable[[], Any] = client) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self._connect = connect
        """Returns the client of this process."""

    def entries(self, path: str) -> Iterator[Entry]:
        token: dict[str, str] = {}
        while True:
            page = retried(lambda token=token: self._call("list_objects_v2", path, Prefix=self._key(path), **token))  # type: ignore[misc]
            for item in page.get("Contents", ()):
                name = item["Key"][len(self.prefix) :]
                # An object name that ends in "/" is a placeholder that web consoles create for a folder.
                if name and not name.endswith("/") and is_at(name, path):
                    yield Entry(
                        path=name,
                        size=item["Size"],
                        etag=unquoted(item["ETag"]),
                        mtime=item["LastModified"].timestamp(),
                    )
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def head(self, path: str) -> Entry:
        found = self._call("head_object", path, Key=self._key(path))
        return Entry(
            path=path,
            size=found["ContentLength"],
            etag=unquoted(found["ETag"]),
            mtime=found["LastModified"].timestamp(),
        )

    def open(self, path: str, start: int, stop: int | None, etag: str) -> Body:
        options: dict[str, str] = {"IfMatch": f'"{etag}"'} if etag else {}
        if start or stop is not None:
            options["Range"] = f"bytes={start}-" + ("" if stop is None else str(stop - 1))
        found = self._call("get_object", path, Key=self._key(path), **options)
        if "Range" in options and "ContentRange" not in found:
            raise StorageError(f"{self.address(path)}: the store ignored the range {options['Range']}")
        size = int(found["ContentRange"].rpartition("/")[2]) if "ContentRange" in found else int(found["ContentLength"])
        body = found["Body"]
        loop = self._connect().loop

        def readinto(view: memoryview) -> int:
            with _translated(self.address(path)):
                return finished(loop, fill(body.read, view))

        return Body(size=size, etag=unquoted(found.get("ETag", "")), readinto=readinto, close=body.close)

    def address(self, path: str) -> str:
        return f"s3://{self.bucket}/{self._key(path)}"

    def _key(self, path: str) -> str:
        return self.prefix + path

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        with _translated(f"{method} {self.address(path)}"):
            filesystem = self._connect()
            request = filesystem._call_s3(method, Bucket=self.bucket, **filesystem.req_kw, **arguments)
            answer: dict[str, Any] = finished(filesystem.loop, request)
        return answer


def unquoted(etag: str) -> str:
    """Return an ETag without quotes and without the mark of a weak one."""
    return etag.removeprefix("W/").strip('"')


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except _NO_ACCESS as error:
        raise AccessError(f"{what}: {error}") from error
    except _PASSING as error:
        raise TransientError(f"{what}: {type(error).__name__}: {error}") from error
    except (OSError, BotoCoreError, ClientError) as error:
        # s3fs wraps the client's error, which has the code and the status, in its own OSError.
        answer = error if isinstance(error, ClientError) else error.__cause__
        if not isinstance(answer, ClientError):
            raise StorageError(f"{what}: {type(error).__name__}: {error}") from error
        status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise error_of(answer.response.get("Error", {}).get("Code", ""), status, what) from error


def error_of(code: str, status: int, what: str) -> StorageError:
    """Return the error for an S3 error code and an HTTP status. A HEAD has no body, so its code is "404" or "403"."""
    refused = code in _ACCESS_CODES or status in (401, 403)
    message = f"{what}: {'access was refused: ' if refused else ''}{code or 'error'} ({status})"
    if code == "InvalidObjectState":
        message += ": the object lies in an archive (Glacier, Deep Archive); restore it, then run again"
    if status == 412 or code == "PreconditionFailed" or (status == 304 and code in ("304", "NotModified")):
        return ChangedError(message)
    if refused:
        return AccessError(message)
    if code in _TRANSIENT_CODES or (status >= 500 and status != 501) or status in (408, 409, 429):
        return TransientError(message)
    if status == 404 or code in ("NoSuchKey", "NoSuchBucket", "NoSuchVersion"):
        return NotFoundError(message)
    return StorageError(message)
