"""Any other fsspec URL (gs://, az://, memory://) as a store: read, list, last-wins writes.

This store never claims create-only: fsspec's default for `mode="create"` checks for an object and then writes, which
passes a test but not a race. Start only one run at a time, as the log says.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latentmill.store.other import OtherObjects, translated
from pipeline.errors import ConfigError, NotFoundError, StorageError


class OtherStore(OtherObjects):
    """Objects under `root`, a URL. fsspec keeps one client per process."""

    def write(self, path: str, data: bytes | Path, *, create: bool) -> bool:
        filesystem, base = self._open_root()
        with translated(self.address(path)):
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
            with contextlib.suppress(NotFoundError), translated(self.address(path)):
                filesystem.rm_file(f"{base}/{path}")

    def remove_folders(self, folder: str) -> None:
        """Do nothing: object stores have no folders."""

    def honours_create(self) -> bool:
        return False

    def now(self) -> float:
        """Return the time of this machine's clock: fsspec has no other."""
        return time.time()

    def _open_root(self) -> tuple[Any, str]:
        try:
            return super()._open_root()
        except StorageError as error:  # an unknown scheme, or its package is not installed
            raise ConfigError(str(error)) from error
