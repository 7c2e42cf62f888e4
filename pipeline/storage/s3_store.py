"""A prefix of an S3 bucket as a store, through s3fs, one request per call.

s3fs provides the event loop, the client and the standard chain of credentials and endpoints (environment, profile,
instance role). The requests are made by this module, because the file layer of s3fs loses the offset that a resume
needs, caches listings, leaves failed multipart uploads behind, and lists or creates buckets.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError

from pipeline.errors import AccessError, ChangedError, NotFoundError, StorageError, TransientError
from pipeline.storage.event_loop import fill, finished
from pipeline.storage.retry import retried
from pipeline.storage.store import TEMPORARY, Body, Entry, is_at

PART_BYTES = 64 << 20
"""Size of the parts of a multipart upload; at most 10,000 parts, so 625 GiB. A smaller object is one PUT."""

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


_PASSING = (
    # botocore's ConnectionError is not Python's ConnectionError, which is also an OSError.
    *(HTTPClientError, BotoConnectionError, ResponseParserError, aiohttp.ClientError, TimeoutError, ConnectionError),
)


class S3Store:
    """Objects of `bucket` under `prefix` ("" or ending in "/"). Stores names only, so it pickles and can be forked."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix

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
                        etag=_unquoted(item["ETag"]),
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
            etag=_unquoted(found["ETag"]),
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
        filesystem = _filesystem()

        def readinto(view: memoryview) -> int:
            with _translated(self.address(path)):
                return finished(filesystem.loop, fill(body.read, view))

        return Body(size=size, etag=_unquoted(found.get("ETag", "")), readinto=readinto, close=body.close)

    def write(self, path: str, data: bytes | Path, *, create: bool) -> bool:
        """Write `data` in one request, or above PART_BYTES in a multipart upload that is aborted if it fails."""
        condition = {"IfNoneMatch": "*"} if create else {}
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        try:
            if size > PART_BYTES:
                self._upload(path, data, condition)
            else:
                body = data if isinstance(data, bytes) else data.read_bytes()
                self._call("put_object", path, Key=self._key(path), Body=body, **condition)
        except ChangedError:  # 412: the condition failed
            return False
        except TransientError:
            # Some stores always answer 409 instead of 412 to the loser of a race.
            if create and self._is_there(path):
                return False
            raise
        return True

    def _upload(self, path: str, data: bytes | Path, condition: dict[str, str]) -> None:
        key = self._key(path)
        upload = self._call("create_multipart_upload", path, Key=key)["UploadId"]
        try:
            parts = []
            for number, piece in enumerate(_pieces(data), start=1):
                part = retried(
                    lambda number=number, piece=piece: self._call(  # type: ignore[misc]
                        "upload_part", path, Key=key, UploadId=upload, PartNumber=number, Body=piece
                    )
                )
                parts.append({"PartNumber": number, "ETag": part["ETag"]})
            self._call(
                "complete_multipart_upload",
                path,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **condition,
            )
        except BaseException:
            # Abort it, or its parts are billed for ever. Only this upload: others may belong to another writer. Uploads
            # left by a kill or a lost response to "create" need a lifecycle rule (AbortIncompleteMultipartUpload).
            with contextlib.suppress(StorageError):
                self._call("abort_multipart_upload", path, Key=key, UploadId=upload)
            raise

    def _is_there(self, path: str) -> bool:
        try:
            self.head(path)
        except StorageError:
            return False
        return True

    def remove(self, paths: Iterable[str]) -> None:
        remaining = iter(paths)
        while batch := [{"Key": self._key(path)} for path in islice(remaining, 1000)]:
            answer = self._call("delete_objects", batch[0]["Key"], Delete={"Objects": batch, "Quiet": True})
            for failed in answer.get("Errors", ()):
                raise _error(failed.get("Code", ""), 0, f"delete s3://{self.bucket}/{failed.get('Key')}")

    def remove_folders(self, folder: str) -> None:
        """Do nothing: object stores have no folders."""

    def honours_create(self) -> bool:
        """Create an object twice: a store that implements If-None-Match rejects the second."""
        probe = f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            retried(lambda: self.write(probe, b"probe", create=True))
            return not retried(lambda: self.write(probe, b"probe", create=True))
        except (AccessError, TransientError):
            raise
        except StorageError:  # 501 NotImplemented
            return False
        finally:
            with contextlib.suppress(StorageError):
                self.remove([probe])

    def now(self) -> float:
        answer = self._call("list_objects_v2", "", Prefix=self._key(TEMPORARY), MaxKeys=1)
        return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def address(self, path: str) -> str:
        return f"s3://{self.bucket}/{self._key(path)}"

    def _key(self, path: str) -> str:
        return self.prefix + path

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        with _translated(f"{method} {self.address(path)}"):
            filesystem = _filesystem()
            request = filesystem._call_s3(method, Bucket=self.bucket, **arguments)
            answer: dict[str, Any] = finished(filesystem.loop, request)
        return answer


def _filesystem() -> Any:
    """Return this process's client. fsspec keeps one instance per process and arguments, and a new one after a fork."""
    from s3fs import S3FileSystem

    filesystem = S3FileSystem(
        use_listings_cache=False,
        config_kwargs={
            # retry.py alone retries. read_timeout: a first byte later than 15 s, the default, is not rare.
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "max_pool_connections": 32,
            "read_timeout": 60,
        },
    )
    filesystem.retries = 1
    return filesystem


def _pieces(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        for start in range(0, len(data), PART_BYTES):
            yield data[start : start + PART_BYTES]
    else:
        with data.open("rb") as file:
            while piece := file.read(PART_BYTES):
                yield piece


def _unquoted(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (NoCredentialsError, PartialCredentialsError, NoAuthTokenError) as error:
        raise AccessError(f"{what}: {error}") from error
    except _PASSING as error:
        raise TransientError(f"{what}: {type(error).__name__}: {error}") from error
    except (OSError, BotoCoreError, ClientError) as error:
        # s3fs wraps the client's error, which has the code and the status, in its own OSError.
        client = error if isinstance(error, ClientError) else error.__cause__
        if not isinstance(client, ClientError):
            raise StorageError(f"{what}: {type(error).__name__}: {error}") from error
        status = client.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise _error(client.response.get("Error", {}).get("Code", ""), status, what) from error


def _error(code: str, status: int, what: str) -> StorageError:
    """Return the error for an S3 error code and an HTTP status. A HEAD has no body, so its code is "404" or "403"."""
    message = f"{what}: {code or 'error'} ({status})"
    if code == "InvalidObjectState":
        message += ": the object lies in an archive (Glacier, Deep Archive); restore it, then run again"
    if status == 412 or code == "PreconditionFailed" or (status == 304 and code in ("304", "NotModified")):
        return ChangedError(message)
    if code in _ACCESS_CODES or status in (401, 403):
        return AccessError(message)
    if code in _TRANSIENT_CODES or (status >= 500 and status != 501) or status in (408, 409, 429):
        return TransientError(message)
    if status == 404 or code in ("NoSuchKey", "NoSuchBucket", "NoSuchVersion"):
        return NotFoundError(message)
    return StorageError(message)
