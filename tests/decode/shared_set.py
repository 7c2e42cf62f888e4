"""The real files of the shared folder, what is expected of each beyond its manifest, and how clips are compared."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.decode import DecodedClip, DecodeSpec, iter_clips, measure
from pipeline.errors import VideoError

REFUSED = {
    "androidx__sample_audio_only.mp4": "no_video_stream",
    "rails__video_without_video_stream.mp4": "no_video_stream",
    "androidx__sample_fragmented_uuid.mp4": "corrupt",
    "androidx__subsample_encrypted_noaltref.webm": "corrupt",
    "libwebm__block_ends_beyond_cluster.mkv": "no_frames",
    "libwebm__invalid_vp9_bitstream-bug_1416.webm": "limit_exceeded",
    "mp4parse__bipbop_cbcs_video_init.mp4": "no_frames",
    "streamio__broken.mp4": "unreadable",
    "streamio__empty.flv": "unreadable",
}
"""Files of which not one frame can be had, and the reason that the manifest's notes call for."""
DAMAGED = {"decord__corrupted.mp4", "androidx__sample_with_invalid_nalu.mp4"}
"""Files with damage between sound frames."""
HEAVY = {
    "androidx__8k24fps_300ms.mp4",
    "androidx__long_1080p_videoonly_lowbitrate.mp4",
    "androidx__sample_edit_list_no_sync_frame_before_edit.mp4",
    "androidx__edit_list_positive_shift.mp4",
    "mde__FLIR_Thermal.mp4",
    "moviepy__smpte-2997.mp4",
    "mdn__crystal.mp4",
    "androidx__internal_emulator_transformer_output_180_rotated.mp4",
    "mde__Sony_ILCE-7M3_A7M3.mts",
    "androidx__hlg10-color-test.mp4",
}
"""Files of which a full decode takes long: left to the slow suite."""
NO_SEEKS = {
    "androidx__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4",
    "androidx__sample.flv",
    "androidx__sample_av1.mp4",
    "androidx__sample_rotate_and_reflect.mp4",
    "mdn__frog.webm",
    "moviepy__no_duration.webm",
    "mp4parser__count.h264",
    "rails__rotated_video.mp4",
    "torchcodec__av1_video.mkv",
    "torchcodec__bt2020_10bit.mp4",
    "torchcodec__bt709_full_range.mp4",
    "torchcodec__rgba.webp",
    "torchcodec__testsrc2_vp8.webm",
}
"""Files with nothing to seek to, so that every start costs the whole way: their seeks are left to the slow suite."""
MANY_PIXELS = 1 << 26


def names() -> list[str]:
    """The names of all files, whether or not the folder is there: parameters of tests."""
    folder = Path(os.environ.get("LATENTMILL_SHARED", Path(__file__).parents[3] / "shared")) / "videos"
    return sorted(entry["file"] for entry in _entries(folder)) if folder.is_dir() else ["absent"]


def manifest(shared: Path) -> dict[str, dict[str, Any]]:
    return {entry["file"]: entry for entry in _entries(shared / "videos")}


def read(shared: Path, name: str) -> bytes:
    return (shared / "videos" / name).read_bytes()


def small(num_frames: int, fps: Fraction | int | None, **changes: Any) -> DecodeSpec:
    """A spec with a small output and no limit on the source's size."""
    rate = None if fps is None else Fraction(fps)
    settings: dict[str, Any] = {"height": 64, "width": 96, "max_pixels": MANY_PIXELS}
    return DecodeSpec(num_frames=num_frames, fps=rate, **(settings | changes))


def same(a: DecodedClip | VideoError, b: DecodedClip | VideoError) -> bool:
    """The same pixels, times and facts, or the same complaint."""
    if isinstance(a, VideoError) or isinstance(b, VideoError):
        return repr(a) == repr(b)
    return a.ticks == b.ticks and np.array_equal(a.frames, b.frames) and a.facts() == b.facts()


def linear(data: bytes, specs: list[DecodeSpec]) -> list[DecodedClip | VideoError]:
    """The clips with every frame decoded from the start: untrusted packets let nothing be sought or left out."""
    return list(iter_clips(data, specs, timeline=replace(measure(data), is_trusted=False)))


def _entries(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "MANIFEST.json").read_text())["files"]
    return entries
