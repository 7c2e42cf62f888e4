"""Google Cloud Storage and Azure Blob Storage as a store, through obstore (extra `cloud`): reading, and writing.

fsspec cannot promise a create-only write to them: its `mode="create"` checks for an object and then writes. obstore
sends the write with a precondition that the service checks, so the second of two creates fails.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from latentmill.store import cloud
from latentmill.store.cloud import translated
from pipeline.errors import AccessError, ConfigError, NotFoundError, StorageError
from pipeline.storage.store import TEMPORARY


class CloudStore(cloud.CloudObjects):
    """Objects under `scheme://bucket/prefix`. It stores names only: each process creates its client once."""

    def write(self, path: str, data: bytes | Path, *, create: bool) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with translated(self.address(path)):
            try:
                # A create is one request of all bytes: a multipart upload has no precondition on all services.
                obstore.put(
                    self.client(), self.prefix + path, data, mode="create" if create else "overwrite",
                    use_multipart=False if create else None,
                )  # fmt: skip
            except AlreadyExistsError:
                return False
        return True

    def remove(self, paths: Iterable[str]) -> None:
        import obstore

        for path in paths:
            with contextlib.suppress(NotFoundError), translated(self.address(path)):
                obstore.delete(self.client(), self.prefix + path)

    def remove_folders(self, folder: str) -> None:
        """Do nothing: object stores have no folders."""

    def honours_create(self) -> bool:
        """Create an object twice, and return whether the service rejects the second."""
        with self._probe() as probe:
            return self.write(probe, b"probe", create=True) and not self.write(probe, b"probe", create=True)

    def now(self) -> float:
        """Return the time of the service's clock: the modification time of a new object."""
        with self._probe() as probe:
            self.write(probe, b"now", create=False)
            return self.head(probe).mtime

    def client(self) -> Any:
        """Return the client of this process. Without credentials it raises ConfigError: a setting is wrong."""
        try:
            return super().client()
        except AccessError as error:
            raise ConfigError(str(error)) from error

    @contextlib.contextmanager
    def _probe(self) -> Iterator[str]:
        probe = f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            yield probe
        finally:
            with contextlib.suppress(StorageError):
                self.remove([probe])
