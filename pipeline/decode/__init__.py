"""Decode encoded video to exactly the frames that a viewer sees, or raise a VideoError that says why not.

    probe(src) -> VideoInfo                headers and the first frame
    measure(src) -> Timeline               presentation times from the packets, without decoding
    decode_clip(src, spec) -> DecodedClip
    iter_clips(src, specs)                 one pass for all clips of a video

`src` is the encoded bytes, a local path, or a seekable binary file object. Time 0 is the first presentable frame.
"""

from pipeline.decode.clip import DecodedClip, DecodeStats, merge_facts
from pipeline.decode.frame_times import FrameTimes, Rate
from pipeline.decode.info import VideoInfo, probe
from pipeline.decode.opening import Source
from pipeline.decode.passes import decode_clip, iter_clips
from pipeline.decode.spec import DecodeSpec
from pipeline.decode.timeline import Timeline, measure

__all__ = [
    "DecodeSpec",
    "DecodeStats",
    "DecodedClip",
    "FrameTimes",
    "Rate",
    "Source",
    "Timeline",
    "VideoInfo",
    "decode_clip",
    "iter_clips",
    "measure",
    "merge_facts",
    "probe",
]
