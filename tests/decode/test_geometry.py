"""Orientation, crop windows and places: the arithmetic by tables, and by pictures that know their way up."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, probe
from pipeline.decode.geometry import UPRIGHT, Box, Orientation, Picture, display_size, orientation, place
from pipeline.decode.spec import Fit
from tests.videos import corners, make_video, read_number

ONE = 1 << 16
EIGHT = [
    Orientation(transpose=t, hflip=h, vflip=v) for t in (False, True) for h in (False, True) for v in (False, True)
]


def turn(image: np.ndarray, way: Orientation) -> np.ndarray:
    image = np.swapaxes(image, 0, 1) if way.transpose else image
    image = image[:, ::-1] if way.hflip else image
    return image[::-1] if way.vflip else image


def matrix(way: Orientation, scale: int = ONE) -> list[int]:
    """The display matrix that maps a source point to where `way` takes it."""
    across, down = (-scale if way.hflip else scale), (-scale if way.vflip else scale)
    if way.transpose:
        return [0, down, 0, across, 0, 0, 0, 0, 1 << 30]
    return [across, 0, 0, 0, down, 0, 0, 0, 1 << 30]


@pytest.mark.parametrize("way", EIGHT)
def test_the_matrix_gives_the_orientation_and_its_names_agree_with_numpy(way: Orientation) -> None:
    assert orientation(matrix(way)) == way
    assert orientation(matrix(way, scale=3 * ONE)) == way
    image = np.arange(12).reshape(3, 4)
    mirrored = image[:, ::-1] if way.flipped else image
    assert np.array_equal(np.rot90(mirrored, way.rotation // 90), turn(image, way))


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        [],
        [0] * 9,
        [ONE, ONE, 0, ONE, ONE, 0, 0, 0, 1 << 30],
        [ONE, 0, 0, 0, 0, 0, 0, 0, 1 << 30],
        [round(ONE * math.cos(0.5)), round(ONE * math.sin(0.5)), 0, -31000, round(ONE * math.cos(0.5)), 0, 0, 0, 1],
        [-(2**31)] * 9,
    ],
)
def test_a_matrix_that_is_no_multiple_of_90_degrees_counts_as_upright(garbage: list[int] | None) -> None:
    assert orientation(garbage) == UPRIGHT


def test_a_matrix_is_rounded_within_a_degree() -> None:
    tilt = math.radians(0.5)
    a, b = round(ONE * math.cos(tilt)), round(ONE * math.sin(tilt))
    assert orientation([b, a, 0, -a, b, 0, 0, 0, 1 << 30]) == Orientation(transpose=True, hflip=True)


Q = Orientation(transpose=True, hflip=True)
WIDE, TALL = (720, 480), (480, 640)
Size, Window = tuple[int, int], tuple[int, int, int, int]
TABLE: list[tuple[Size, Size, dict[str, Any], Window, Size, Window]] = [
    ((1280, 720), WIDE, {}, (100, 0, 1080, 720), WIDE, (0, 0, 720, 480)),
    ((1280, 720), WIDE, {"position": (0, 0.5)}, (0, 0, 1080, 720), WIDE, (0, 0, 720, 480)),
    ((1280, 720), WIDE, {"position": (1, 0.5)}, (200, 0, 1080, 720), WIDE, (0, 0, 720, 480)),
    ((720, 1280), WIDE, {}, (0, 400, 720, 480), WIDE, (0, 0, 720, 480)),
    ((1280, 720), WIDE, {"fit": "stretch"}, (0, 0, 1280, 720), WIDE, (0, 0, 720, 480)),
    ((1280, 720), WIDE, {"fit": "pad"}, (0, 0, 1280, 720), (720, 404), (0, 38, 720, 404)),
    ((100, 200), (64, 64), {"fit": "pad"}, (0, 0, 100, 200), (32, 64), (16, 0, 32, 64)),
    ((640, 480), TALL, {"turn": Q}, (0, 0, 640, 480), (640, 480), (0, 0, 480, 640)),
    ((640, 480), (64, 64), {"turn": Q, "position": (0.5, 0)}, (0, 0, 480, 480), (64, 64), (0, 0, 64, 64)),
    ((640, 480), (64, 64), {"turn": Q, "position": (0.5, 1)}, (160, 0, 480, 480), (64, 64), (0, 0, 64, 64)),
    ((720, 576), (640, 360), {"sar": Fraction(64, 45)}, (0, 0, 720, 576), (640, 360), (0, 0, 640, 360)),
    ((320, 240), (320, 120), {"sar": Fraction(1, 2)}, (0, 90, 320, 60), (320, 120), (0, 0, 320, 120)),
    ((121, 81), (64, 64), {}, (20, 0, 80, 81), (64, 64), (0, 0, 64, 64)),
    ((1, 1), (64, 32), {}, (0, 0, 1, 1), (64, 32), (0, 0, 64, 32)),
]


@pytest.mark.parametrize(("source", "target", "case", "crop", "scaled", "placed"), TABLE)
def test_windows_and_places(
    source: Size, target: Size, case: dict[str, Any], crop: Window, scaled: Size, placed: Window
) -> None:
    picture = Picture(size=source, sar=case.get("sar", Fraction(1)), turn=case.get("turn", UPRIGHT))
    where = place(picture, target, case.get("fit", "cover"), case.get("position", (0.5, 0.5)))
    assert (tuple(where.crop.as_list()), where.scaled, tuple(where.placed.as_list())) == (crop, scaled, placed)


def lies_within(box: Box, width: int, height: int) -> bool:
    return min(box.x, box.y) >= 0 and box.x + box.width <= width and box.y + box.height <= height


@pytest.mark.parametrize("fit", ["cover", "pad", "stretch"])
def test_every_window_lies_in_the_source_and_every_place_in_the_output(fit: Fit) -> None:
    rng = np.random.default_rng(7)
    for _ in range(300):
        width, height = (int(x) for x in rng.integers(1, 400, 2))
        target = (2 * int(rng.integers(1, 100)), 2 * int(rng.integers(1, 100)))
        sar = Fraction(int(rng.integers(1, 40)), int(rng.integers(1, 40)))
        picture = Picture(size=(width, height), sar=sar, turn=EIGHT[rng.integers(8)])
        where = place(picture, target, fit, (rng.random(), rng.random()))
        crop, placed = where.crop, where.placed
        assert lies_within(crop, width, height)
        assert lies_within(placed, *target)
        assert min(crop.width, crop.height) >= 1
        assert min(placed.width, placed.height) >= 2
        assert all(even % 2 == 0 for even in (crop.x, crop.y, placed.width, placed.height))


def test_display_size_is_square_pixels_upright() -> None:
    assert display_size(1280, 1080, Fraction(3, 2), UPRIGHT) == (1920, 1080)
    assert display_size(640, 480, Fraction(1), Q) == (480, 640)


def decoded(data: bytes, **changes: Any) -> DecodedClip:
    return decode_clip(data, DecodeSpec(num_frames=1, fps=None, **({"height": 96, "width": 128} | changes)))


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270, -90])
def test_rotated_and_mirrored_video_comes_out_as_declared(rotation: int, hflip: bool) -> None:
    """Against numpy on the picture as coded."""
    data = make_video(num_frames=1, rotation=rotation, hflip=hflip, codec_options={"crf": "1"})
    info = probe(data)
    size = {"height": info.display_height, "width": info.display_width}
    upright = decoded(data, **size)
    coded = decoded(data, autorotate=False).frames[0]
    mirrored = coded[:, ::-1] if info.flipped else coded
    assert np.abs(np.rot90(mirrored, info.rotation // 90).astype(int) - upright.frames[0]).max() <= 2
    assert info.flipped == hflip
    assert (info.display_width, info.display_height) == ((96, 128) if rotation % 180 else (128, 96))
    facts = upright.facts()
    assert (facts["rotation"], facts["flipped"]) == (info.rotation, info.flipped)
    if not rotation and not hflip:
        assert corners(upright.frames[0]) == (True, True, False)
        assert read_number(upright.frames[0]) == 0


def test_crop_position_is_meant_upright() -> None:
    """crop=(0, 0) is the top left of what a viewer sees, whatever the matrix."""
    for rotation in (0, 90, 180, 270):
        data = make_video(num_frames=1, width=128, height=64, rotation=rotation, codec_options={"crf": "1"})
        info = probe(data)
        whole = decoded(data, height=info.display_height, width=info.display_width).frames[0].astype(int)
        for position, corner in (((0.0, 0.0), whole[:64, :64]), ((1.0, 1.0), whole[-64:, -64:])):
            part = decoded(data, height=64, width=64, crop=position).frames[0]
            assert np.abs(part - corner).max() <= 2


def test_anamorphic_video_is_shown_with_square_pixels() -> None:
    data = make_video(num_frames=1, width=64, height=96, sar=Fraction(2))
    assert (probe(data).display_width, probe(data).display_height) == (128, 96)
    assert decoded(data).facts()["crop"] == [0, 0, 64, 96]
    assert decoded(data, square_pixels=False).facts()["crop"] == [0, 24, 64, 48]


def test_padding_is_black_and_the_rest_is_the_picture() -> None:
    clip = decoded(make_video(num_frames=1), height=128, width=128, fit="pad")
    assert clip.facts()["placed"] == [0, 16, 128, 96]
    assert not clip.frames[0, :16].any()
    assert not clip.frames[0, -16:].any()
    assert read_number(clip.frames[0, 16:-16]) == 0
    low = decoded(make_video(num_frames=1), height=128, width=128, fit="pad", crop=(0.5, 1.0))
    assert low.facts()["placed"] == [0, 32, 128, 96]


def test_a_change_of_size_in_mid_stream_changes_the_window() -> None:
    """Two MPEG-TS pieces of different size in one file; a graph built for the first would crop the second wrongly."""
    data = make_video(num_frames=6, container="mpegts") + make_video(
        num_frames=6, container="mpegts", width=160, height=160
    )
    clip = decode_clip(data, DecodeSpec(num_frames=12, fps=None, height=96, width=128, fit="stretch"))
    assert [read_number(f) for f in clip.frames] == [*range(6), *range(6)]
    assert clip.facts()["crop"] == [0, 0, 128, 96]
    (change,) = clip.facts()["changes"]
    assert (change["frame"], change["crop"], change["width"]) == (6, [0, 0, 160, 160], 160)


@pytest.mark.parametrize(("width", "height"), [(63, 47), (65, 64), (16, 130)])
def test_odd_sizes(width: int, height: int) -> None:
    data = make_video(num_frames=3, width=width, height=height, pix_fmt="yuv444p")
    clip = decode_clip(data, DecodeSpec(num_frames=3, fps=None, height=96, width=128, fit="stretch"))
    assert [read_number(f) for f in clip.frames] == [0, 1, 2]


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_a_pixel_aspect_that_changes_in_mid_stream_changes_with_its_frame(codec: str) -> None:
    """A broadcast that goes from 4:3 to 16:9. Reached in passing and by seeking."""
    make = partial(make_video, codec=codec, container="mpegts", gop=8, time_base=Fraction(1, 24))
    parts = [
        make(times=[Fraction(24 * part + n, 24) for n in range(24, 48)], sar=sar)
        for part, sar in enumerate((Fraction(1), Fraction(4, 3)))
    ]
    data = b"".join(parts)
    assert probe(data).sar == 1
    whole = decode_clip(data, DecodeSpec(num_frames=48, fps=None, height=64, width=64))
    assert [(first, kind.sar) for first, kind, _, _ in whole.kinds] == [(0, 1), (24, Fraction(4, 3))]
    (_, _, before, _), (_, _, after, _) = whole.kinds
    assert before[2] > after[2]  # wider pixels, so fewer of them make a square
    for start in (20, 23, 24, 25, 40):
        clip = decode_clip(data, DecodeSpec(num_frames=4, fps=None, height=64, width=64, start=Fraction(start, 24)))
        assert np.array_equal(clip.frames, whole.frames[start : start + 4])


def test_a_pixel_aspect_that_only_the_stream_states_is_seen_before_and_after_decoding() -> None:
    data = make_video(num_frames=5, codec_options={"x264-params": "sar=2/1"})
    assert b"pasp" not in data
    info = probe(data)
    assert (info.sar, info.display_width, info.display_height) == (2, 256, 96)
    clip = decode_clip(data, DecodeSpec(num_frames=1, fps=None, height=64, width=64))
    assert clip.kinds[0][1].sar == 2
