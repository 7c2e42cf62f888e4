"""Share a numpy array between processes: a file that each process maps. It pickles by path.

The file is named by its content, which is compared with the name before it is believed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latentmill.errors import OpenError
from latentmill.store.cache import private_files

IN_MEMORY_BYTES = 1 << 16
"""A smaller array is not worth a file."""


class SharedArray:
    """A numpy array, `values`, that processes of one machine share."""

    def __init__(self, values: npt.NDArray[Any], path: Path | None = None) -> None:
        self.values = values
        self._path = path

    @staticmethod
    def of(values: npt.NDArray[Any], cache: Path) -> SharedArray:
        """Write `values` of one axis to a file of the cache that is named by their content."""
        values = np.ascontiguousarray(values)
        if values.nbytes < IN_MEMORY_BYTES:
            return SharedArray(values)
        path = cache / f"index-array-{_digest(values)}-{values.dtype}"
        try:
            return SharedArray._mapped(path)
        except OpenError:  # it is not there, or damaged
            private_files.discard(path)
        with private_files.building(cache) as folder:
            private_files.create(folder / "values")
            values.tofile(folder / "values")
            (folder / "values").rename(path)
        return SharedArray._mapped(path)

    @staticmethod
    def _mapped(path: Path) -> SharedArray:
        """Map a file. Raises OpenError if it is not there, or its content is not what its name says."""
        try:
            number, content = private_files.mapped(path)
            os.close(number)
            os.utime(path)
        except (OSError, ValueError) as error:
            raise OpenError(f"{path} is gone or unreadable ({error}): open the output again") from error
        digest, dtype = path.name.split("-")[2:]
        if _digest(content) != digest:
            raise OpenError(f"{path} is damaged: open the output again")
        return SharedArray(np.frombuffer(content, dtype), path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (SharedArray._mapped, (self._path,)) if self._path else (SharedArray, (self.values,))


def _digest(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
