"""Geometry: orientation from the display matrix, the crop window in the source, and its place in the output.

Pure arithmetic. "Source" is the decoded picture as coded, "upright" is as a viewer sees it: upright = flips(T(source)),
where T transposes or not. Pictures are cropped and scaled in source orientation and turned last, when they are small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from pipeline.decode.spec import Fit

_MAX_SKEW_DEGREES = 1.0
"""Allowed deviation of a display matrix from a multiple of 90 degrees; FFmpeg's autorotate has the same bound."""


_MIN_ASPECT = Fraction(1, 16)
"""Allowed pixel aspect ratios; others are a broken header, not an anamorphic picture."""


def pixel_aspect(*stated: Fraction | None) -> Fraction:
    """Return width / height of a pixel: the first value that is given, or 1 if there is none or it makes no sense."""
    aspect = next(filter(None, stated), Fraction(1))
    return Fraction(aspect) if _MIN_ASPECT <= aspect <= 1 / _MIN_ASPECT else Fraction(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Orientation:
    """How to turn a decoded picture upright: transpose, then mirror horizontally, then mirror vertically."""

    transpose: bool = False
    hflip: bool = False
    vflip: bool = False

    @property
    def flipped(self) -> bool:
        """Whether the picture is mirrored: upright = turn(mirror horizontally(source))."""
        return (self.transpose + self.hflip + self.vflip) % 2 == 1

    @property
    def rotation(self) -> int:
        """Degrees to turn counter-clockwise, after mirroring horizontally if `flipped`: 0, 90, 180 or 270."""
        # A turn by 90 degrees is vflip(transpose). After a mirror, transpose alone is the turn by 90.
        vflip = self.vflip
        if self.flipped:
            vflip = not vflip if self.transpose else vflip
        if not self.transpose:
            return 180 if vflip else 0
        return 90 if vflip else 270


UPRIGHT = Orientation()


def orientation(matrix: Sequence[int] | None) -> Orientation:
    """Return the orientation of a display matrix: 9 int32 in FFmpeg's format (16.16, rows a b u / c d v / x y w).

    x' = a x + c y, y' = b x + d y. A missing, singular or skewed matrix counts as upright, as in players.
    """
    if matrix is None or len(matrix) < 5:
        return UPRIGHT
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    across, down = math.hypot(a, b), math.hypot(c, d)
    if not across or not down or a * d == b * c:
        return UPRIGHT
    tolerance = math.sin(math.radians(_MAX_SKEW_DEGREES))
    if abs(b) <= tolerance * across and abs(c) <= tolerance * down:
        return Orientation(hflip=a < 0, vflip=d < 0)
    if abs(a) <= tolerance * across and abs(d) <= tolerance * down:
        return Orientation(transpose=True, hflip=c < 0, vflip=b < 0)
    return UPRIGHT


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    x: int
    y: int
    width: int
    height: int

    def as_list(self) -> list[int]:
        return [self.x, self.y, self.width, self.height]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The source window `crop` is scaled to `scaled` (source orientation), turned, and put at `placed` (upright)."""

    crop: Box
    scaled: tuple[int, int]
    placed: Box


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A source picture as it is stored."""

    size: tuple[int, int]
    """(width, height)."""
    sar: Fraction
    """Sample aspect ratio: width of a pixel by its height."""
    turn: Orientation
    chroma: tuple[int, int] = (2, 2)
    """Pixels per chroma sample, horizontally and vertically."""


def place(source: Picture, target: tuple[int, int], fit: Fit, position: tuple[float, float]) -> Placement:
    """Fit a source picture into an output. `target` is (width, height); `target` and `position` are upright.

    A window begins at a chroma sample and at an even pixel; its size is even, unless it covers a whole picture of odd
    size. Example: 1280x720 into 720x480, "cover", position (0.5, 0.5): the window is 1080x720 at x=100, y=0.
    """
    (width, height), sar, turn, chroma = source.size, source.sar, source.turn, source.chroma
    out_width, out_height = (target[1], target[0]) if turn.transpose else target
    aspect = width * sar / height
    wanted = Fraction(out_width, out_height)
    crop = Box(x=0, y=0, width=width, height=height)
    scaled = (out_width, out_height)
    if fit == "cover":
        across, down = _to_source(position, turn)
        if aspect > wanted:
            crop_width = _even(wanted * height / sar, width)
            crop = Box(x=_offset(width - crop_width, across, chroma[0]), y=0, width=crop_width, height=height)
        elif aspect < wanted:
            crop_height = _even(width * sar / wanted, height)
            crop = Box(x=0, y=_offset(height - crop_height, down, chroma[1]), width=width, height=crop_height)
    elif fit == "pad":
        if aspect > wanted:
            scaled = (out_width, _even(out_width / aspect, out_height))
        else:
            scaled = (_even(out_height * aspect, out_width), out_height)
    upright = (scaled[1], scaled[0]) if turn.transpose else scaled
    placed = Box(
        x=_offset(target[0] - upright[0], position[0]),
        y=_offset(target[1] - upright[1], position[1]),
        width=upright[0],
        height=upright[1],
    )
    return Placement(crop=crop, scaled=scaled, placed=placed)


def display_size(width: int, height: int, sar: Fraction, turn: Orientation) -> tuple[int, int]:
    """Return width and height as displayed: square pixels, upright. Lines are kept, columns are stretched."""
    seen = max(1, round(width * sar))
    return (height, seen) if turn.transpose else (seen, height)


def _to_source(position: tuple[float, float], turn: Orientation) -> tuple[float, float]:
    across = 1 - position[0] if turn.hflip else position[0]
    down = 1 - position[1] if turn.vflip else position[1]
    return (down, across) if turn.transpose else (across, down)


def _even(size: Fraction, limit: int) -> int:
    """Return the even size nearest to `size`, at least 2, or `limit` if it reaches the limit."""
    if size >= limit:
        return limit
    return min(limit, max(2, 2 * round(size / 2)))


def _offset(slack: int, position: float, chroma: int = 2) -> int:
    step = max(2, chroma)
    return int(slack * position) // step * step
