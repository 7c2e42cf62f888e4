"""DecodeSpec: which frames to cut out of a video, and how to convert them. The input of decode_clip and iter_clips."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from pipeline.decode.frame_times import Rate

Fit = Literal["cover", "pad", "stretch"]
Filter = Literal["bicubic", "lanczos", "area", "bilinear"]
Short = Literal["error", "pad_last", "truncate"]
OnError = Literal["raise", "skip"]
Hdr = Literal["as_is", "reject"]
Deinterlace = Literal["off", "spatial"]
UntaggedColorspace = Literal["by_size", "bt601", "bt709", "ffmpeg", "auto"]
"""The last two are names from earlier versions, kept for their outputs."""
Times = Literal["exact", "as_stored"]
"""exact: rounded times are recovered, and times that FFmpeg invents for raw streams are put right; see docs/frames.md.
as_stored: the rule of earlier versions, kept for their outputs."""

DEFAULT_MAX_PIXELS = 4096 * 2304
DEFAULT_MAX_DECODED_FRAMES = 20_000
DEFAULT_MAX_OUTPUT_BYTES = 8 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSpec:
    """One clip: `num_frames` frames at t = start + (offset + i) / fps, as uint8 RGB of `height` x `width`.

    A frame is chosen by time: the last one whose time is at or before t, which is what a viewer sees at t. Times are
    seconds after the first presentable frame; `FrameTimes` compares them. Two specs that differ in `offset` alone cut
    pieces of one clip, and the pieces equal the clip decoded whole.
    """

    num_frames: int
    fps: Fraction | None
    """Frames per second of the grid; None takes consecutive source frames, the first at or after `start`."""
    height: int
    width: int
    """Pixels of the upright output. Even, because swscale gives other pixels for an odd width."""
    start: Fraction = Fraction(0)
    offset: int = 0
    """Grid index (native: source frame after `start`) of this piece's first frame."""
    times: Times = "exact"
    rate: Rate | None = None
    """The rate from which the stream's times were rounded, from `measure` or `probe`; None: they are exact."""
    fit: Fit = "cover"
    crop: tuple[float, float] = (0.5, 0.5)
    """Position of the crop (cover) or the picture (pad), horizontal and vertical: 0 left or top, 1 right or bottom."""
    filter: Filter = "bicubic"
    autorotate: bool = True
    square_pixels: bool = True
    """Whether to use the sample aspect ratio."""
    untagged_colorspace: UntaggedColorspace = "by_size"
    """Matrix of untagged YUV. "by_size" is BT.709 from 720 lines or 1280 columns on, as in browsers and players,
    and BT.601 below. "ffmpeg" is BT.601, "auto" is BT.709 from 720 lines on, whatever the width."""
    deinterlace: Deinterlace = "off"
    """"spatial" runs estdif on frames that are flagged interlaced. Not bwdif: it needs the neighbours of every frame,
    and the graph sees only the chosen ones."""
    hdr: Hdr = "as_is"
    short: Short = "error"
    """What to do if the video ends before the clip. A truncated file is an error with each of them."""
    on_error: OnError = "raise"
    """"skip" takes frames that were predicted from lost ones, repeats the previous frame for lost ones, and ignores
    frames that the decoder flags as corrupt. "raise" rejects the clip."""
    max_hold: Fraction | None = None
    """Longest time, in seconds, for which one source frame may be shown in place of later ones."""
    min_motion: float | None = None
    """Reject the piece if no two neighbouring frames differ by this many levels on average."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Limit: source pixels per frame."""
    max_decoded_frames: int = DEFAULT_MAX_DECODED_FRAMES
    """Limit: source frames between the first and the last frame of the piece."""
    max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES

    def __post_init__(self) -> None:
        for name, least in (("num_frames", 1), ("offset", 0), ("max_pixels", 1), ("max_decoded_frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 2 or value % 2:
                raise ValueError(f"{name} must be even and at least 2, got {value}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps must be positive or None, got {self.fps}")
        if self.start < 0:
            raise ValueError(f"start must not be negative, got {self.start}")
        if not all(0 <= c <= 1 for c in self.crop):
            raise ValueError(f"crop must lie within 0..1, got {self.crop}")
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")

    def target(self, i: int) -> Fraction:
        """Return the time of the piece's frame i on the grid, in seconds after the first presentable frame."""
        assert self.fps is not None
        return self.start + (self.offset + i) / self.fps

    @property
    def output_bytes(self) -> int:
        return self.num_frames * self.height * self.width * 3


_CHOICES = {
    "fit": Fit,
    "filter": Filter,
    "short": Short,
    "on_error": OnError,
    "hdr": Hdr,
    "deinterlace": Deinterlace,
    "untagged_colorspace": UntaggedColorspace,
    "times": Times,
}
