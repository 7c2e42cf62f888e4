"""Edit lists of MP4 and QuickTime: which part of a track is shown, and when. Only plain lists are supported.

FFmpeg handles empty edits at the start, which delay the track, followed by one edit that shows media. With other lists
its frames have wrong times: a later empty edit is treated as one that shows media from the start, the second of two
edits begins a frame late if frames are reordered, and every edit is played at rate 1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.decode.bitstream.boxes import boxes_at
from pipeline.errors import UnsupportedEditsError

if TYPE_CHECKING:
    from pipeline.decode.opening import Feed

_MAX_LIST_BYTES = 1 << 16
_MAX_EDITS_TOLD = 4


class _Edit(NamedTuple):
    """An entry of an edit list (ISO/IEC 14496-12, 8.6.6)."""

    duration: int
    """Duration in units of the movie header."""
    media_time: int
    """Start in the media, in units of the track. -1: nothing is shown."""
    rate: Fraction

    @property
    def is_empty(self) -> bool:
        return self.media_time == -1

    def __str__(self) -> str:
        what = "nothing" if self.is_empty else f"media from {self.media_time} at rate {self.rate}"
        return f"{what} for {self.duration}"


def check_edits(feed: Feed, stream: Any) -> None:
    """Reject a stream of an MP4 or QuickTime file whose edit list is not plain.

    Raises:
        UnsupportedEditsError
    """
    for edits in _edit_lists(feed, stream.id):
        shown = list(dropwhile(lambda edit: edit.is_empty, edits))
        if len(shown) > 1 or any(edit.rate != 1 for edit in shown):
            told = ", ".join(map(str, shown[:_MAX_EDITS_TOLD])) + (", ..." if len(shown) > _MAX_EDITS_TOLD else "")
            raise UnsupportedEditsError(
                f"the edit list of track {stream.id} shows {told}; supported are empty edits followed by a single one "
                "that shows media at rate 1: convert the file with a tool that applies its edits"
            )


def _edit_lists(feed: Feed, track_id: int) -> Iterator[list[_Edit]]:
    """Yield the edit lists of a track: at most one in a regular file."""
    for _, start, end in boxes_at(feed, (b"moov", b"trak"), 0, feed.size):
        if any(_track_id(feed, at) == track_id for _, at, _ in boxes_at(feed, (b"tkhd",), start, end)):
            for _, at, after in boxes_at(feed, (b"edts", b"elst"), start, end):
                yield list(_edits(feed.read_at(at, min(after - at, _MAX_LIST_BYTES))))


def _track_id(feed: Feed, at: int) -> int:
    """Return the id in the content of a track header: version, flags, two dates of 4 or 8 bytes, the id."""
    header = feed.read_at(at, 24)
    offset = 20 if header[:1] == b"\1" else 12
    return int.from_bytes(header[offset : offset + 4])


def _edits(content: bytes) -> Iterator[_Edit]:
    """Yield the edits of an `elst` box: version, flags, the number of entries, the entries."""
    entry = struct.Struct(">QqI" if content[:1] == b"\1" else ">IiI")
    count = min(int.from_bytes(content[4:8]), max(0, len(content) - 8) // entry.size)
    for duration, media_time, rate in entry.iter_unpack(content[8 : 8 + count * entry.size]):
        yield _Edit(duration, media_time, Fraction(rate, 1 << 16))
