"""ClipRule, the settings of clips: every field is an option of the command line and a part of the Spec."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from pipeline.decode.spec import Deinterlace, Filter, Fit, Hdr, OnError, Times, UntaggedColorspace
from pipeline.errors import ConfigError

_PIXEL_MULTIPLE = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRule:
    """Which clips to cut from every video, their shape, and which videos to reject."""

    num_frames: int = 49
    """Frames per clip. Causal VAEs take 1 + 4k."""
    fps: str = "8"
    """Frames per second to pick, by time: an integer or a fraction such as 30000/1001.
    "native" takes consecutive source frames."""
    height: int = 480
    """Height of a clip in pixels."""
    width: int = 720
    """Width of a clip in pixels."""
    clips: Literal["first", "all", "every"] = "first"
    """first: one clip from the start. all: consecutive clips, without a partial one at the end.
    every: one clip every `--every` seconds."""
    every: float | None = None
    """Seconds between the starts of clips, with --clips every. Clips may overlap."""
    max_clips: int | None = None
    """Largest number of clips per video."""
    buckets: tuple[str, ...] = ()
    """Clip shapes TxHxW such as 49x480x720,49x720x480. Replaces num_frames, height and width.
    Each video gets the shape nearest in aspect ratio; among equal ones, the longest for which it has enough frames."""
    fit: Fit = "cover"
    """cover: fill the clip and crop. pad: fit inside, with black bars. stretch: ignore the aspect ratio."""
    crop_x: float = 0.5
    """Horizontal position of the crop (with --fit pad, of the picture): 0 left, 1 right."""
    crop_y: float = 0.5
    """Vertical position of the crop (with --fit pad, of the picture): 0 top, 1 bottom."""
    filter: Filter = "bicubic"
    """Interpolation kernel for scaling."""
    short: Literal["reject", "pad", "trim"] = "reject"
    """For a video, or a range in a table, shorter than one clip. reject: reject it. pad: repeat the last frame.
    trim: make a shorter clip, with the largest number of frames that the VAE takes."""
    images: Literal["one_frame", "reject"] = "one_frame"
    """For still images (jpg, png, webp, ...). one_frame: make a clip of one frame. reject: reject as too short."""
    hdr: Hdr = "as_is"
    """For PQ and HLG video. as_is: convert without tone mapping, which looks flat. reject: reject the video."""
    deinterlace: Deinterlace = "off"
    """spatial: interpolate the lines of one field (FFmpeg's estdif) in frames flagged as interlaced. off: keep them."""
    untagged_colorspace: UntaggedColorspace = "by_size"
    """For YUV without a colour tag. by_size: BT.709 from 720 lines or 1280 columns on, else BT.601.
    bt601, bt709: always this one. To resume outputs of earlier versions: ffmpeg means bt601, auto means BT.709 from 720
    lines on."""
    on_error: OnError = "raise"
    """For damage inside a clip. raise: reject the clip. skip: repeat the last good frame."""
    times: Times = "exact"
    """exact: frames are compared by the times that a container rounded, and a start or end in a table that is very near
    a frame means this frame. as_stored: the rule of earlier versions, with which their outputs are continued."""
    require_caption: bool = False
    """Reject videos without a caption."""
    min_size: int | None = None
    """Reject videos whose shorter side, as displayed, is less than this many pixels."""
    min_duration: float | None = None
    """Reject videos shorter than this many seconds."""
    max_duration: float | None = None
    """Reject videos longer than this many seconds."""
    min_fps: float | None = None
    """Reject videos with fewer frames per second, on average."""
    max_hold: float | None = None
    """Reject clips in which one source frame is shown for more than this many seconds."""
    min_motion: float | None = None
    """Reject a clip as static if no two neighbouring frames differ by this many levels (0-255) on average.
    Each chunk is checked separately."""
    max_pixels: int = 4096 * 2304
    """Limit: source pixels per frame."""
    limit_duration: float = 86400.0
    """Limit: seconds of video."""
    limit_hold: float | None = 60.0
    """Limit, with --clips all or every: seconds of one unchanged picture that become clips. None: no limit.
    If a picture stays longer, as in slides and paused recordings, one rejection represents all further clips that show
    nothing else."""
    max_decoded_frames: int = 20_000
    """Limit: source frames in the time span of one chunk of a clip."""
    max_bytes: int = 16 << 30
    """Limit: bytes of one encoded file. A file in a tar is read into memory, so at most 4 GiB."""

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            _require(name, getattr(self, name), getattr(self, name) in get_args(kind), " or ".join(get_args(kind)))
        for name in ("num_frames", "max_pixels", "max_decoded_frames", "max_bytes"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("height", "width"):
            value = getattr(self, name)
            _require(name, value, value >= _PIXEL_MULTIPLE and not value % _PIXEL_MULTIPLE, "even and at least 2")
        for name in ("crop_x", "crop_y"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "within 0..1")
        for name in ("every", *_POSITIVE):
            value = getattr(self, name)
            _require(name, value, value is None or (value > 0 and math.isfinite(value)), "positive and finite")
        _require("max_clips", self.max_clips, self.max_clips is None or self.max_clips >= 1, "at least 1")
        if (self.clips == "every") != (self.every is not None):
            got = f"--clips {self.clips} and " + ("no --every" if self.every is None else f"--every {self.every:g}")
            raise ConfigError(f"--clips every needs --every SECONDS, which no other --clips takes; got {got}")
        _parse_fps(self.fps)
        given = tuple(bucket.strip() for buckets in self.buckets for bucket in buckets.split(","))
        object.__setattr__(self, "buckets", given)  # one spelling, so that equal buckets give equal Specs
        for bucket in self.buckets:
            _parse_bucket(bucket)

    @property
    def rate(self) -> Fraction | None:
        """Frames per second of the grid; None for native frames."""
        return _parse_fps(self.fps)

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Every (frames, height, width) that a clip can have, before trimming; images have one frame."""
        if self.buckets:
            return tuple(_parse_bucket(bucket) for bucket in self.buckets)
        return ((self.num_frames, self.height, self.width),)

    @property
    def needs_timeline(self) -> bool:
        """Whether planning needs the times of all packets. Else headers are enough, and decoding checks the rest."""
        asks = (self.min_duration, self.max_duration, self.min_fps)
        several = len({frames for frames, _, _ in self.shapes}) > 1
        return self.clips != "first" or self.short != "reject" or several or any(ask is not None for ask in asks)


_CHOICES: dict[str, Any] = {
    "clips": Literal["first", "all", "every"],
    "fit": Fit,
    "filter": Filter,
    "short": Literal["reject", "pad", "trim"],
    "images": Literal["one_frame", "reject"],
    "hdr": Hdr,
    "deinterlace": Deinterlace,
    "untagged_colorspace": UntaggedColorspace,
    "on_error": OnError,
    "times": Times,
}
_POSITIVE = (
    *("min_size", "min_duration", "max_duration", "min_fps", "max_hold", "min_motion"),
    *("limit_duration", "limit_hold"),
)


def exact(seconds: float) -> Fraction:
    """Return the decimal number that the user wrote, not the binary number nearest to it."""
    return Fraction(str(seconds))


def _require(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"--{name.replace('_', '-')} must be {allowed}, got {value!r}")


def _parse_fps(text: str) -> Fraction | None:
    if text == "native":
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    _require("fps", text, rate > 0, 'positive, an integer or a fraction such as 30000/1001, or "native"')
    return rate


def _parse_bucket(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    allowed = "TxHxW with T at least 1 and even H and W, such as 49x480x720"
    _require("buckets", text, len(parts) == 3 and all(part.isdecimal() for part in parts), allowed)
    num_frames, height, width = (int(part) for part in parts)
    sizes = min(height, width) >= _PIXEL_MULTIPLE and not (height % _PIXEL_MULTIPLE or width % _PIXEL_MULTIPLE)
    _require("buckets", text, num_frames >= 1 and sizes, allowed)
    return num_frames, height, width
