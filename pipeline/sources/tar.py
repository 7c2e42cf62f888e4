"""TarReader: read a tar as a stream of members, and detect damage.

`tarfile` in stream mode ends without an error at a truncated or damaged header, so this module parses the blocks: POSIX
ustar and pax, GNU long names, V7. A tar is whole only if the checksum of every header is right, the two zero blocks of
the end are present, and only zeros follow up to the object's planned size. Nothing is written to disk, and a size in a
header is checked before memory is allocated for it.

    block 0    header: name 0:100, size 124:136, checksum 148:156, type 156, magic 257:263, prefix 345:500
    block 1..  data, padded to 512
    ...
    two zero blocks, zeros to the end
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import StorageError, TarDamagedError

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 20
"""Largest size of a pax header or long name; real ones have a few hundred bytes."""

_NO_DATA = frozenset(b"123456")  # links, devices, folders, pipes: no data follows, even if the size is not 0


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar."""

    name: str
    """Name as written, without a leading "./"; bytes that are not UTF-8 appear as backslash escapes."""
    kind: Literal["file", "folder", "other"]
    """other: a link, a device, a pipe or a sparse file, which has no plain content."""
    size: int
    """Size of the data in bytes."""


@dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    type: int
    size: int
    extended: bool
    """Whether it is an old GNU sparse header that continues in further blocks."""


class TarReader:
    """Iterate over the members of `file`, which has `size` bytes. `read()` returns the data of the current member.

    Raises:
        TarDamagedError: all bytes were read, but they are not a whole tar.
        StorageError: there are fewer bytes than planned.
    """

    def __init__(self, file: io.BufferedIOBase, size: int) -> None:
        self._file = file
        self._left = size
        self._unread = 0
        self._padding = 0
        self._name = ""
        self._scratch = memoryview(bytearray(min(1 << 20, size)))

    def __iter__(self) -> Iterator[Member]:
        defaults: dict[str, bytes] = {}
        while (member := self._next_member(defaults)) is not None:
            yield member

    def read(self) -> memoryview:
        """Return the data of the last yielded member. Call it once per member."""
        self._check_claim()
        data = memoryview(bytearray(self._unread))
        self._take_into(data)
        self._unread = 0
        return data.toreadonly()

    def _next_member(self, defaults: dict[str, bytes]) -> Member | None:
        own: dict[str, bytes] = {}
        pending = False
        while True:
            self._check_claim()
            self._skip(self._unread + self._padding)
            self._unread = self._padding = 0
            block = self._take(BLOCK, "a header")
            if not any(block):
                if pending:
                    raise TarDamagedError(f"the tar ends after an extended header, {self._left} bytes before the end")
                self._check_end()
                return None
            header = parse_header(block)
            match chr(header.type):
                case "x":
                    own |= parse_pax(self._extended(header.size))
                    pending = True
                case "g":
                    defaults |= parse_pax(self._extended(header.size))
                case "L":
                    own["path"] = self._extended(header.size).rstrip(b"\0")
                    pending = True
                case "K":
                    self._extended(header.size)
                    pending = True
                case _:
                    return self._member(header, defaults | own)

    def _member(self, header: _Header, pax: dict[str, bytes]) -> Member:
        size = header.size
        if "size" in pax:
            if not pax["size"].isdigit() or len(pax["size"]) > 20:
                raise TarDamagedError(f"pax size {pax['size'][:40]!r} is not a number")
            size = int(pax["size"])
        if header.type in _NO_DATA:
            size = 0
        sparse = header.type == ord("S") or any(name.startswith("GNU.sparse") for name in pax)
        extended = header.extended
        while extended:
            extended = self._take(BLOCK, "a sparse map")[504] != 0
        name = pax.get("path", header.name).decode("utf-8", "backslashreplace")
        self._claim(size, name)
        plain = chr(header.type) not in "123456S" and not sparse
        kind: Literal["file", "folder", "other"] = "file" if plain else "folder" if header.type == ord("5") else "other"
        if plain and name.endswith("/"):  # V7 has no type for folders, only this slash
            kind = "folder"
        return Member(name=name.removeprefix("./"), kind=kind, size=size)

    def _claim(self, size: int, name: str) -> None:
        self._unread, self._padding, self._name = size, -size % BLOCK, name

    def _check_claim(self) -> None:
        """Check that the size in a header is not larger than the rest of the object, before memory is allocated.

        This happens after the member is yielded: its name is valid, and it ends the previous sample.
        """
        if self._unread + self._padding > self._left:
            raise TarDamagedError(f"member {self._name[:200]!r} claims {self._unread} bytes, and {self._left} are left")

    def _extended(self, size: int) -> bytes:
        if size > MAX_EXTENDED_BYTES:
            raise TarDamagedError(f"an extended header of {size} bytes; at most {MAX_EXTENDED_BYTES} are read")
        self._claim(size, "extended header")
        return bytes(self.read())

    def _check_end(self) -> None:
        if self._left < BLOCK:
            raise TarDamagedError("the tar ends after one zero block of two")
        if any(self._take(BLOCK, "the end")):
            raise TarDamagedError(f"a zero block between members, {self._left} bytes before the end")
        while self._left:
            piece = self._scratch[: min(self._left, len(self._scratch))]
            self._take_into(piece)
            if piece.tobytes().count(0) != len(piece):
                raise TarDamagedError(
                    f"something follows the end of the tar, {self._left} bytes before the object's end"
                )

    def _take(self, count: int, what: str) -> bytes:
        if count > self._left:
            raise TarDamagedError(
                f"the tar breaks off where {what} should be: {self._left} bytes are left of the object"
            )
        data = self._file.read(count)
        self._count(len(data), count)
        return data

    def _take_into(self, view: memoryview) -> None:
        self._count(self._file.readinto(view) if view else 0, len(view))

    def _skip(self, count: int) -> None:
        while count:
            piece = self._scratch[: min(count, len(self._scratch))]
            self._take_into(piece)
            count -= len(piece)

    def _count(self, got: int, asked: int) -> None:
        self._left -= got
        if got != asked:
            raise StorageError(f"the tar's bytes ended {self._left} bytes before its planned size")


def parse_header(block: bytes) -> _Header:
    """Parse one 512-byte header.

    Raises:
        TarDamagedError: its checksum or a number in it is wrong.
    """
    # The checksum field counts as eight spaces in the sum.
    plain = block[:148] + b"        " + block[156:]
    excess = sum(plain) - parse_number(block[148:156])
    if excess and excess != 256 * sum(byte >= 128 for byte in plain):  # some old writers sum signed chars
        raise TarDamagedError("a header with a wrong checksum")
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return _Header(
        name=name,
        type=block[156],
        size=parse_number(block[124:136]),
        extended=block[156] == ord("S") and block[482] != 0,
    )


def parse_number(field: bytes) -> int:
    """Parse octal digits between spaces and NULs, or GNU's base-256 for numbers that are too large for octal.

    Raises:
        TarDamagedError: neither format, or a negative number.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.lstrip(b" ").rstrip(b" \0")
    if digits.translate(None, b"01234567"):
        raise TarDamagedError(f"a header with {field!r} where an octal number should be")
    return int(digits or b"0", 8)


def parse_pax(data: bytes) -> dict[str, bytes]:
    """Parse the records `length key=value newline` of a pax header: b"12 path=a.b\\n" -> {"path": b"a.b"}.

    Raises:
        TarDamagedError: a length that does not fit.
    """
    records: dict[str, bytes] = {}
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + 20)
        length = data[start:space] if space > start else b""
        stop = start + int(length) if length.isdigit() else 0
        equals = data.find(b"=", space, stop)
        if not space < equals < stop <= len(data) or data[stop - 1 : stop] != b"\n":
            raise TarDamagedError(f"a pax header with a bad record at byte {start} of {len(data)}")
        records[data[space + 1 : equals].decode("utf-8", "backslashreplace")] = data[equals + 1 : stop - 1]
        start = stop
    return records
