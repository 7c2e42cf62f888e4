"""Parse GIF far enough to distinguish images from other blocks (GIF89a specification, sections 17 to 27)."""

from __future__ import annotations

_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B


def holds_an_image(packet: memoryview) -> bool:
    """Return whether a packet has an image, after any number of extensions. The first packet has the header."""
    at = _after_header(packet)
    while at < len(packet) and packet[at] == _EXTENSION:
        at = _after_sub_blocks(packet, at + 2)
    return at < len(packet) and packet[at] != _TRAILER


def breaks_off(file: bytes) -> bool | None:
    """Return whether a file ends before its trailer, or None if it has anything that is not GIF."""
    at = _after_header(memoryview(file))
    while at < len(file):
        if file[at] == _TRAILER:
            return False
        if file[at] == _EXTENSION:
            at = _after_sub_blocks(file, at + 2)
        elif file[at] == _IMAGE:
            flags = file[at + 9] if at + 9 < len(file) else 0
            at = _after_sub_blocks(file, at + 10 + _table(flags) + 1)
        else:
            return None
    return True


def _after_header(data: memoryview) -> int:
    if bytes(data[:3]) != b"GIF" or len(data) < 13:
        return 0
    return 13 + _table(data[10])


def _table(flags: int) -> int:
    """Return the size of a colour table in bytes."""
    return 6 << (flags & 7) if flags & 0x80 else 0


def _after_sub_blocks(data: bytes | memoryview, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1
