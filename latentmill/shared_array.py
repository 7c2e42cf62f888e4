"""A numpy array in a file that every process of a machine maps. It pickles by its path."""

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
    """See the module. The array is `values`."""

    def __init__(self, values: npt.NDArray[Any], path: Path | None = None) -> None:
        self.values = values
        self._path = path

    @staticmethod
    def of(values: npt.NDArray[Any], cache: Path) -> SharedArray:
        """Keep `values` in a file of the cache, named by their content."""
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
