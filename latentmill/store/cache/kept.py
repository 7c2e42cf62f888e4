"""Keep a folder in the cache: built once a machine, checked before it is believed, and built again if it is damaged.

    facts.json    what the builder says, and "kept": {"name", "files": {name: [size, crc32]}}, and the crc32 of all this

A parser of Arrow files trusts what it maps, and a flipped bit may end the process or pass unnoticed: so the checksum of
each file is compared before a byte of it is parsed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from isal.isal_zlib import crc32  # the checksum of zlib, ten times as fast

from latentmill.errors import OpenError, StorageError
from latentmill.store.cache import private_files

FACTS = "facts.json"

_PIECE_BYTES = 1 << 22
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class DamagedCopyError(OpenError):
    """A folder of the cache is missing, damaged, or somebody else's."""


class Kept:
    """A folder of the cache that was checked.

    Raises:
        DamagedCopyError: it is missing, damaged or somebody else's.
        StorageError: the process has no descriptor or memory left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.facts: dict[str, Any] = json.loads(private_files.read(folder / FACTS))
            """What the builder said."""
            if self.facts.pop("crc32") != _digest(self.facts):
                raise ValueError("its facts have another checksum")
            kept = self.facts.pop("kept")
            if kept["name"] != folder.name:
                raise ValueError(f"it is {kept['name']}")
            self.files = {name: _checked(folder / name, *sums) for name, sums in kept["files"].items()}
            """The content of each file, mapped."""
        except OSError as error:
            if error.errno in _SHORT:
                raise StorageError(f"{folder}: {error.strerror}") from error
            raise DamagedCopyError(f"{folder} is gone or unreadable ({error}): open the output again") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DamagedCopyError(f"{folder} is damaged ({error}): open the output again") from error

    @staticmethod
    def of(cache: Path, name: str, build: Callable[[Path], dict[str, Any]]) -> Kept:
        """Return a folder of the cache, and build it first if it is missing or damaged.

        Args:
            name: it must tell all that decides the content.
            build: writes the files into a folder, and returns the facts.
        """
        folder = cache / name
        try:
            return _used(folder)
        except DamagedCopyError:
            pass
        with private_files.one_at_a_time(folder.with_name(f"{name}.lock")):
            try:
                return _used(folder)
            except DamagedCopyError:
                pass
            private_files.sweep(cache)
            with private_files.building(cache) as made:
                return publish(made, folder, build(made))


def publish(made: Path, folder: Path, facts: dict[str, Any]) -> Kept:
    """Give a folder of files its checksums and its name. What has the name and is whole stays, as processes use it."""
    sums = {path.name: _sums(path) for path in made.iterdir()}
    facts = facts | {"kept": {"name": folder.name, "files": sums}}
    private_files.create(made / FACTS)
    (made / FACTS).write_text(json.dumps(facts | {"crc32": _digest(facts)}))
    try:
        return _used(folder)
    except DamagedCopyError:
        private_files.discard(folder)
    try:
        made.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
            raise
    return _used(folder)


def _used(folder: Path) -> Kept:
    kept = Kept(folder)
    os.utime(folder)
    return kept


def _checked(path: Path, size: int, checksum: int) -> pa.Buffer:
    number, content = private_files.mapped(path)
    try:
        if content.size != size or _crc32(number) != checksum:
            raise ValueError(f"{path.name} has another checksum")
    finally:
        os.close(number)
    return content


def _sums(path: Path) -> tuple[int, int]:
    path.chmod(0o600)
    number = private_files.open_own(path)
    try:
        return os.fstat(number).st_size, _crc32(number)
    finally:
        os.close(number)


def _crc32(number: int) -> int:
    """Return the checksum of a file. Reading it piece by piece keeps it out of the memory of the process."""
    piece, value = bytearray(_PIECE_BYTES), 0
    view = memoryview(piece)
    while count := os.readv(number, [piece]):
        value = crc32(view[:count], value)
    return value


def _digest(facts: dict[str, Any]) -> int:
    return crc32(json.dumps(facts, sort_keys=True).encode())
