"""Share a numpy array between processes: a file that each process maps. It pickles by path."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

IN_MEMORY_BYTES = 1 << 16
"""A smaller array is not worth a file."""


class SharedArray:
    """A numpy array, `values`, that processes of one machine share."""

    def __init__(self, values: npt.NDArray[Any], path: Path | None = None) -> None:
        self.values = values
        self._path = path

    @staticmethod
    def of(values: npt.NDArray[Any], cache: Path) -> SharedArray:
        """Write `values` to a file of the cache that is named by their content."""
        values = np.ascontiguousarray(values)
        if values.nbytes < IN_MEMORY_BYTES:
            return SharedArray(values)
        digest = hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()
        path = cache / f"index-array-{digest}-{values.dtype}.npy"
        if not path.exists():
            temporary = cache / f"building-{uuid.uuid4().hex}.npy"
            np.save(temporary, values)
            temporary.replace(path)
        return SharedArray._mapped(path)

    @staticmethod
    def _mapped(path: Path) -> SharedArray:
        with contextlib.suppress(OSError):
            os.utime(path)
        return SharedArray(np.load(path, mmap_mode="r"), path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (SharedArray._mapped, (self._path,)) if self._path else (SharedArray, (self.values,))
