"""A prefix of an S3 bucket as a store: reading as `S3Objects` does, and writing, one request per call.

The file layer of s3fs leaves failed multipart uploads behind, and lists or creates buckets; so the requests are made
here.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path

from latentmill.errors import AccessError, ChangedError, StorageError, TransientError
from latentmill.store.retry import retried
from latentmill.store.s3 import S3Objects, error_of
from pipeline.storage.store import TEMPORARY

PART_BYTES = 64 << 20
"""Size of the parts of a multipart upload; at most 10,000 parts, so 625 GiB. A smaller object is one PUT."""


class S3Store(S3Objects):
    """Objects of `bucket` under `prefix` ("" or ending in "/"). Stores names only, so it pickles and can be forked."""

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
                raise error_of(failed.get("Code", ""), 0, f"delete s3://{self.bucket}/{failed.get('Key')}")

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


def _pieces(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        for start in range(0, len(data), PART_BYTES):
            yield data[start : start + PART_BYTES]
    else:
        with data.open("rb") as file:
            while piece := file.read(PART_BYTES):
                yield piece
