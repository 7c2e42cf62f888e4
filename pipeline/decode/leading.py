"""The frames that lead a video's first keyframe: decoded after it, shown before it.

Where a video was cut, they are what is left of an open GOP: predicted from frames that are gone, they never come out.
Some are predicted from nothing before the keyframe, and do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_START = b"\0\0\1"
_GROUP = _START + b"\xb8"
_OPEN_GOPS = {"h264", "hevc", "vvc", "mpeg1video", "mpeg2video"}
"""Codecs whose decoders give out nothing that leads the first keyframe, unless the stream says that it can be."""
_IDR = 5
"""nal_unit_type of a slice of a picture after which none before it is referred to (H.264, table 7-1)."""
_SLICES = {"hevc": range(32), "vvc": range(12)}
_DECODABLE = {"hevc": {6, 7}, "vvc": {2}}
"""nal_unit_type of a "random access decodable leading" picture (H.265 table 7-1, H.266 table 5)."""


class Lead:
    """What leads `keyframe`, the packet with which decoding begins."""

    def __init__(self, keyframe: Any, ticks: int, stream: Any) -> None:
        self._ticks = ticks
        self._codec = stream.codec_context.name
        self._length_size = _length_size(self._codec, bytes(stream.codec_context.extradata or b""))
        self._may_lose = self._codec in _OPEN_GOPS and not self._is_closed(bytes(keyframe))

    def is_lost(self, packet: Any, ticks: int | None) -> bool:
        """Whether no frame comes of a later packet, which is shown at `ticks`."""
        return self._may_lose and ticks is not None and ticks < self._ticks and not self._is_decodable(packet)

    def _is_closed(self, keyframe: bytes) -> bool:
        """Whether the keyframe says that what leads it needs no frame before it."""
        if self._codec == "h264":
            return any(header[0] & 31 == _IDR for header in _unit_headers(keyframe, self._length_size))
        return self._codec.startswith("mpeg") and _is_closed_group(keyframe)

    def _is_decodable(self, packet: Any) -> bool:
        if self._codec not in _SLICES:
            return False
        headers = _unit_headers(bytes(packet), self._length_size)
        kinds = (header[0] >> 1 & 63 if self._codec == "hevc" else header[1] >> 3 for header in headers)
        return next((kind for kind in kinds if kind in _SLICES[self._codec]), None) in _DECODABLE[self._codec]


def _is_closed_group(data: bytes) -> bool:
    """H.262, 6.2.2.6: after a group's start code come 25 bits of time code, then closed_gop."""
    at = data.find(_GROUP)
    return 0 <= at < len(data) - 7 and bool(data[at + 7] & 0x40)


def _length_size(codec: str, extradata: bytes) -> int | None:
    """Bytes of the length before each NAL unit (ISO/IEC 14496-15: 5.3.3.1, 8.3.2.1, 11.2.4.2); None for start codes."""
    if codec == "h264" and len(extradata) > 4 and extradata[0] == 1:
        return 1 + (extradata[4] & 3)
    if codec == "hevc" and len(extradata) > 21 and extradata[0] == 1:
        return 1 + (extradata[21] & 3)
    if codec == "vvc" and extradata and extradata[0] >= 0xF8:
        return 1 + (extradata[0] >> 1 & 3)
    return None


def _unit_headers(data: bytes, length_size: int | None) -> Iterator[bytes]:
    """The two bytes that each NAL unit begins with."""
    at = 0
    if length_size is None:
        while 0 <= (at := data.find(_START, at)) < len(data) - 4:
            at += len(_START)
            yield data[at : at + 2]
        return
    while at + length_size + 2 <= len(data):
        size = int.from_bytes(data[at : at + length_size])
        at += length_size
        yield data[at : at + 2]
        at += size
