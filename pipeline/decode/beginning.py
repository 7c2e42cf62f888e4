"""Where a video begins: the first frame that is known to be predicted from no missing one.

In a file that was cut, the frames before the first keyframe lack what they are predicted from. Some decoders give none
of them out. The others predict from grey or black, without an error and without a flag: garbage that looks clean. So
nothing is shown before a frame that its decoder, its packet or its container states to be complete in itself. What is
decoded after this frame but shown before it is left out, too: it may be predicted from both sides.
"""

from __future__ import annotations

from typing import Any

from av.video.frame import PictureType

from pipeline.decode.bitstream.rpza import draws_every_block
from pipeline.decode.spec import Times

_HOLD_BACK = {
    *("h264", "hevc", "vvc", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1", "libdav1d", "libaom-av1"),
    *("ffv1", "flashsv2", "gif", "snow", "zmbv"),
}
"""Decoders that give out nothing, an error or a flag until they have what a frame is predicted from. Some can begin
without an intra frame: H.264 at a recovery point, HEVC and VVC at any random access point."""
_FALSELY_MARKED = {"h261", "h263"}
"""Codecs of which demuxers mark every packet as a keyframe."""
_MARKED_BY_DEMUXER = {"apng"}
"""Codecs whose decoder calls every frame an intra frame."""
_MARKED_BY_DECODER = {"cinepak"}
"""Codecs whose decoder states the keyframes, but not the types of frames."""
_KEEP_MARKS = {
    *("avi", "mov", "matroska", "flv", "asf", "nut", "ogg", "rm", "mxf", "mpegts", "mpeg"),
    *("m4v", "h261", "h263", "vc1", "cavsvideo"),
}
"""Containers that state which packets are keyframes, and bare streams whose frames do. Others, such as FLIC and RoQ,
cannot be read without their first bytes: their first frame is complete."""


class Beginning:
    """Tell which frames of a stream can be shown although no earlier frame is known."""

    def __init__(self, container: Any, stream: Any, times: Times) -> None:
        self._codec = stream.codec_context.name
        self._size = (int(stream.codec_context.width or 0), int(stream.codec_context.height or 0))
        self._keeps_marks = bool(_KEEP_MARKS & set(container.format.name.split(",")))
        self.is_held_back = self._codec in _HOLD_BACK or times != "exact"
        """Whether the decoder itself gives out nothing before the first complete frame. Outputs of earlier versions
        take its word."""

    def is_keyframe(self, packet: Any) -> bool:
        """Return whether the packet is marked as a keyframe; RPZA has no such marks, so it is read."""
        if self._codec == "rpza":
            return draws_every_block(bytes(packet), *self._size)
        return bool(packet.is_keyframe)

    def is_complete_unseen(self, packet: Any) -> bool:
        """Return whether a packet whose frame the decoder does not give out, by an edit list, is a sure keyframe."""
        return self._codec not in _FALSELY_MARKED and self.is_keyframe(packet)

    def is_complete(self, frame: Any, *, is_keyframe: bool) -> bool:
        """Return whether the decoder can have made this frame without any earlier frame.

        `is_keyframe` is what `is_keyframe` says of its packet. It counts only where the decoder says nothing.
        """
        if self.is_held_back:
            return True
        if self._codec in _MARKED_BY_DECODER:
            return bool(frame.key_frame)
        if frame.pict_type == PictureType.NONE or self._codec in _MARKED_BY_DEMUXER:
            return is_keyframe or not self._keeps_marks
        return bool(frame.pict_type == PictureType.I or frame.key_frame)
