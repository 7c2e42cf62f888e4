"""The boxes of MP4 and QuickTime files (ISO/IEC 14496-12, 4.2), read one header at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.decode.opening import Feed

_MAX_BOXES = 1_000_000

Box = tuple[bytes, int, int]
"""(type, start of its content, end of the box according to its header, which may be after the end of its parent)."""


def boxes(feed: Feed, start: int, end: int) -> Iterator[Box]:
    """Yield the consecutive boxes from `start` to `end`, up to the first one with an invalid size."""
    for _ in range(_MAX_BOXES):
        header = feed.read_at(start, 16) if start < end else b""
        if len(header) < 8:
            return
        size, length = int.from_bytes(header[:4]), 8
        if size == 1:
            size, length = int.from_bytes(header[8:16]), 16
        elif size == 0:
            size = end - start
        if size < length:
            return
        yield header[4:8], start + length, start + size
        start += size


def boxes_at(feed: Feed, path: tuple[bytes, ...], start: int, end: int) -> Iterator[Box]:
    """Yield the boxes at `path`: the types of its parents from the outside, then its own type."""
    for kind, inside, after in boxes(feed, start, end):
        if kind != path[0]:
            continue
        if len(path) == 1:
            yield kind, inside, min(after, end)
        else:
            yield from boxes_at(feed, path[1:], inside, min(after, end))
