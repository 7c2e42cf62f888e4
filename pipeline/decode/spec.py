"""What to cut out of a video, and how: the request that `decode_clip` and `iter_clips` answer."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

Fit = Literal["cover", "pad", "stretch"]
Filter = Literal["bicubic", "lanczos", "area", "bilinear"]
Short = Literal["error", "pad_last", "truncate"]
OnError = Literal["raise", "skip"]
Hdr = Literal["as_is", "reject"]
Deinterlace = Literal["off", "spatial"]
UntaggedColorspace = Literal["by_size", "bt601", "bt709", "ffmpeg", "auto"]
"""The last two are the words of earlier versions, and mean in their outputs what they meant then."""

DEFAULT_MAX_PIXELS = 4096 * 2304
DEFAULT_MAX_DECODED_FRAMES = 20_000
DEFAULT_MAX_OUTPUT_BYTES = 8 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSpec:
    """One clip: `num_frames` frames at t = start + (offset + i) / fps, as uint8 RGB of `height` x `width`.

    A frame is chosen by time: the last one whose timestamp is at or before t, which is what a viewer sees at t. Times
    are seconds after the first presentable frame. Two specs that differ in `offset` alone cut pieces of one clip, and
    the pieces equal the clip decoded whole.
    """

    num_frames: int
    fps: Fraction | None
    """Frames a second of the grid; None takes consecutive source frames, the first at or after `start`."""
    height: int
    width: int
    """Pixels of the upright output. Even: an odd width sends swscale down another path with other pixels."""
    start: Fraction = Fraction(0)
    offset: int = 0
    """Grid index (native: source frame after `start`) of this piece's first frame."""
    fit: Fit = "cover"
    crop: tuple[float, float] = (0.5, 0.5)
    """Where the crop (cover) or the picture (pad) sits, across and down: 0 left or top, 1 right or bottom."""
    filter: Filter = "bicubic"
    autorotate: bool = True
    square_pixels: bool = True
    """Honour the sample aspect ratio."""
    untagged_colorspace: UntaggedColorspace = "by_size"
    """Matrix of untagged YUV. "by_size" is BT.709 from 720 lines or 1280 columns on, as browsers and players have it,
    and BT.601 below. "ffmpeg" is BT.601, "auto" is BT.709 from 720 lines on, whatever the width."""
    deinterlace: Deinterlace = "off"
    """"spatial" runs estdif on frames that are flagged interlaced. Not bwdif: it needs the neighbours of every frame,
    and the graph sees only the chosen ones."""
    hdr: Hdr = "as_is"
    short: Short = "error"
    """What to do when the video ends before the clip. A truncated file is an error under each of them."""
    on_error: OnError = "raise"
    """"skip" takes frames that were predicted from lost ones and holds frames across lost ones; frames that the decoder
    itself flags corrupt are passed over. "raise" refuses the clip."""
    max_hold: Fraction | None = None
    """Seconds; the longest time that one source frame may stand in for later ones."""
    min_motion: float | None = None
    """Levels; refuse the piece if no two neighbouring frames differ by this much on average."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Source pixels a frame."""
    max_decoded_frames: int = DEFAULT_MAX_DECODED_FRAMES
    """Source frames between the first and the last frame of the piece."""
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
        """Time of the piece's frame i on the grid, in seconds after the first presentable frame."""
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
}
