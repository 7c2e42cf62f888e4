"""The leading frames of a video's first keyframe: decoded after it, shown before it.

In a video that was cut, they are the rest of an open GOP: predicted from missing frames, so the decoder drops them.
Some are predicted only from frames after the cut, so they are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_START = b"\0\0\1"
_GROUP = _START + b"\xb8"
_OPEN_GOPS = {"h264", "hevc", "vvc", "mpeg1video", "mpeg2video"}
"""Codecs whose decoders drop leading frames of the first keyframe, unless the stream marks them as decodable."""
_IDR = 5
"""nal_unit_type of a slice of an IDR picture: later pictures do not refer to earlier ones (H.264, table 7-1)."""
_SLICES = {"hevc": range(32), "vvc": range(12)}
_DECODABLE = {"hevc": {6, 7}, "vvc": {2}}
"""nal_unit_type of a "random access decodable leading" picture (H.265 table 7-1, H.266 table 5)."""


class Lead:
    """The leading frames of `keyframe`, the packet with which decoding begins."""

    def __init__(self, keyframe: Any, ticks: int, stream: Any) -> None:
        self._ticks = ticks
        self._codec = stream.codec_context.name
        self._length_size = _length_size(self._codec, bytes(stream.codec_context.extradata or b""))
        self._may_lose = self._codec in _OPEN_GOPS and not self._is_closed(bytes(keyframe))

    def is_lost(self, packet: Any, ticks: int | None) -> bool:
        """Return whether a later packet, whose frame is shown at `ticks`, gives no frame."""
        return self._may_lose and ticks is not None and ticks < self._ticks and not self._is_decodable(packet)

    def _is_closed(self, keyframe: bytes) -> bool:
        """Return whether the keyframe states that its leading frames need no earlier frame."""
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
    """Read closed_gop, which follows the start code of a group and 25 bits of time code (H.262, 6.2.2.6)."""
    at = data.find(_GROUP)
    return 0 <= at < len(data) - 7 and bool(data[at + 7] & 0x40)


def _length_size(codec: str, extradata: bytes) -> int | None:
    """Return the size of a NAL unit's length (ISO/IEC 14496-15: 5.3.3.1, 8.3.2.1, 11.2.4.2); None for start codes."""
    if codec == "h264" and len(extradata) > 4 and extradata[0] == 1:
        return 1 + (extradata[4] & 3)
    if codec == "hevc" and len(extradata) > 21 and extradata[0] == 1:
        return 1 + (extradata[21] & 3)
    if codec == "vvc" and extradata and extradata[0] >= 0xF8:
        return 1 + (extradata[0] >> 1 & 3)
    return None


def _unit_headers(data: bytes, length_size: int | None) -> Iterator[bytes]:
    """Yield the first two bytes of each NAL unit."""
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
