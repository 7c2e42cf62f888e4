"""Detect a file that ends before its outermost elements do: the only sign of truncation that needs no timestamps.

Matroska and MP4 state the size of their top-level elements, ASF the size of the file, Ogg the size of each page, and a
GIF ends with a trailer. Demuxers read to the end of the file without an error. AVI states sizes too, but some files
have wrong ones (`androidx__sample-with-large-length.avi`), so they are not used.
"""

from __future__ import annotations

from pipeline.decode.bitstream import gif
from pipeline.decode.bitstream.boxes import boxes
from pipeline.decode.opening import Feed

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MAX_GIF_BYTES = 1 << 26
_MAX_PAGE_BYTES = 65_307


def breaks_off(feed: Feed, formats: set[str]) -> bool | None:
    """Return whether the last element reaches beyond the end of the file, or None if the file does not state it."""
    if "matroska" in formats:
        return _segment_breaks_off(feed)
    if "mov" in formats:
        return _boxes_break_off(feed)
    if "asf" in formats:
        return _asf_breaks_off(feed)
    if "ogg" in formats:
        return _last_page_breaks_off(feed)
    if "gif" in formats and feed.size <= _MAX_GIF_BYTES:
        return gif.breaks_off(feed.read_at(0, feed.size))
    return None


def _asf_breaks_off(feed: Feed) -> bool | None:
    """ASF specification, 3.2: the header has the file size 40 bytes after this id; 0 if it was a live stream."""
    head = feed.read_at(0, 1 << 16)
    at = head.find(_FILE_PROPERTIES)
    stated = int.from_bytes(head[at + 40 : at + 48], "little") if at >= 0 else 0
    return feed.size < stated if stated else None


def _last_page_breaks_off(feed: Feed) -> bool | None:
    """RFC 3533, 6: a page's header is 27 bytes and a table of the sizes of its segments, whose number is the last."""
    tail = feed.read_at(max(0, feed.size - 2 * _MAX_PAGE_BYTES), 2 * _MAX_PAGE_BYTES)
    at = tail.rfind(b"OggS")
    if at < 0:
        return None
    header = tail[at : at + 27]
    table = tail[at + 27 : at + 27 + header[26]] if len(header) == 27 else b""
    return len(header) < 27 or len(table) < header[26] or at + 27 + len(table) + sum(table) > len(tail)


def _boxes_break_off(feed: Feed) -> bool:
    for kind, _, end in boxes(feed, 0, feed.size):
        if not kind.isascii() or not kind.strip(b"\0"):
            return False  # not a box, but data appended to the file
        if end > feed.size:
            return True
    return False


def _segment_breaks_off(feed: Feed) -> bool | None:
    """RFC 8794, 4 and 5: an element is its id, its size as a variable-length integer, its data."""
    head = feed.read_at(0, 64)
    if not head.startswith(_EBML):
        return None
    size, length = _variable_integer(head[4:12])
    offset = 4 + length + (size or 0)
    head = feed.read_at(offset, 12)
    if size is None or not head.startswith(_SEGMENT):
        return None
    size, length = _variable_integer(head[4:12])
    return None if size is None else offset + 4 + length + size > feed.size


def _variable_integer(data: bytes) -> tuple[int | None, int]:
    """(value, number of bytes); the value is None for "unknown"."""
    if not data or not data[0]:
        return None, 1
    length = 9 - data[0].bit_length()
    value = int.from_bytes(data[:length]) & ~(1 << 7 * length)
    return (None if value == (1 << 7 * length) - 1 else value), length
