"""Colours: the right matrix and range, no darkening, near the float reference; HDR and alpha by stated policy."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from pipeline.decode import DecodeSpec, decode_clip, probe
from tests.videos import make_video, read_number

COLOURS = np.array([[235, 30, 40], [40, 220, 60], [30, 50, 230], [230, 230, 40], [128, 128, 128], [250, 250, 250]])


def bars(width: int = 192, height: int = 64) -> np.ndarray:
    """uint8 [height, width, 3]: six flat bars, wide enough that no filter tap reaches their middle from outside."""
    return np.repeat(np.repeat(COLOURS[None], height, 0), width // 6, 1).astype(np.uint8)


def middles(frame: np.ndarray) -> np.ndarray:
    """The colour in the middle of each bar, [6, 3]."""
    width = frame.shape[1] // 6
    return np.array(
        [frame[24:40, i * width + width // 2 - 2 : i * width + width // 2 + 2].mean((0, 1)) for i in range(6)]
    )


def decoded(data: bytes, **changes: Any) -> np.ndarray:
    settings: dict[str, Any] = {"num_frames": 1, "fps": None, "height": 64, "width": 192, "fit": "stretch"}
    return decode_clip(data, DecodeSpec(**(settings | changes))).frames[0]


LOSSLESS = {"codec": "libx264", "codec_options": {"crf": "1"}, "width": 192, "height": 64, "num_frames": 1}
BT709, BT601, BT2020 = 1, 5, 9
LIMITED, FULL = 1, 2


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("colorspace", [BT709, BT601])
def test_tagged_colours_come_back(colorspace: int, color_range: int, pix_fmt: str) -> None:
    data = make_video(images=[bars()], colorspace=colorspace, color_range=color_range, pix_fmt=pix_fmt, **LOSSLESS)
    assert np.abs(middles(decoded(data)) - COLOURS).max() <= 3


def test_bt2020_is_not_taken_for_another_matrix() -> None:
    """The encoder's matrix is BT.2020 by hand: PyAV cannot convert to it."""
    kr, kb = 0.2627, 0.0593
    rgb = bars().astype(float) / 255
    luma = rgb @ np.array([kr, 1 - kr - kb, kb])
    blue, red = (rgb[..., 2] - luma) / (2 * (1 - kb)), (rgb[..., 0] - luma) / (2 * (1 - kr))
    yuv = np.stack([16 + 219 * luma, 128 + 224 * blue, 128 + 224 * red]).round().astype(np.uint8)
    data = make_video(
        images=[yuv], image_format="yuv444p", pix_fmt="yuv444p", colorspace=BT2020, color_range=LIMITED, **LOSSLESS
    )
    assert np.abs(middles(decoded(data)) - COLOURS).max() <= 3


def test_untagged_video_is_bt601_unless_auto_finds_it_high_definition() -> None:
    tall = LOSSLESS | {"height": 720}
    untagged = make_video(images=[bars(height=720)], colorspace=BT709, color_range=LIMITED, tagged=False, **tall)
    assert np.abs(middles(decoded(untagged)) - COLOURS).max() > 10
    assert np.abs(middles(decoded(untagged, untagged_colorspace="auto")) - COLOURS).max() <= 3
    small = make_video(images=[bars()], colorspace=BT601, color_range=LIMITED, tagged=False, **LOSSLESS)
    for policy in ("ffmpeg", "auto"):
        assert np.abs(middles(decoded(small, untagged_colorspace=policy)) - COLOURS).max() <= 3


def textured(width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: smooth shapes and mid-frequency texture, in colour, as in footage."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / 23 + y / 51), np.cos(x / 9 - y / 31), np.sin(np.hypot(x - width / 2, y - height / 2) / 12)]
    grain = np.random.default_rng(3).normal(0, 6, (height, width, 1))
    mix = np.stack([waves[0] * 60 + waves[2] * 40, waves[1] * 30 + waves[2] * 50, waves[0] * 50 - waves[1] * 40], -1)
    return np.clip(128 + mix + grain, 0, 255).astype(np.uint8)


def bicubic(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bicubic (a = -0.6, as swscale has it) with the kernel widened for reduction, in float64."""

    def weights(source: int, target: int) -> np.ndarray:
        ratio = source / target
        support = max(ratio, 1.0)
        centres = (np.arange(target) + 0.5) * ratio - 0.5
        t = np.abs(np.arange(source)[None] - centres[:, None]) / support
        a = -0.6
        near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
        w = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        return w / w.sum(1, keepdims=True)

    rows = np.tensordot(weights(image.shape[0], height), image.astype(np.float64), (1, 0))
    columns = np.tensordot(weights(image.shape[1], width), rows, (1, 1)).transpose(1, 0, 2)
    return np.clip(columns, 0, 255)


def test_the_picture_is_within_49_db_of_a_float_reference_and_no_darker() -> None:
    """From the decoder's own 4:4:4 planes, converted in float: what differs is swscale's arithmetic alone."""
    image = textured(1280, 720)
    kr, kb = 0.2126, 0.0722
    rgb = image.astype(float) / 255
    luma = rgb @ np.array([kr, 1 - kr - kb, kb])
    blue, red = (rgb[..., 2] - luma) / (2 * (1 - kb)), (rgb[..., 0] - luma) / (2 * (1 - kr))
    planes = np.stack([16 + 219 * luma, 128 + 224 * blue, 128 + 224 * red]).round().astype(np.uint8)
    y, u, v = (planes[0] - 16.0) / 219, (planes[1] - 128.0) / 224, (planes[2] - 128.0) / 224
    r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    g = (y - kr * r - kb * b) / (1 - kr - kb)
    exact = np.clip(np.stack([r, g, b], -1) * 255, 0, 255)
    data = make_video(
        images=[planes], image_format="yuv444p", pix_fmt="yuv444p", colorspace=BT709, color_range=LIMITED,
        width=1280, height=720, num_frames=1, codec="ffv1", container="matroska",
    )  # fmt: skip
    ours = decoded(data, width=720, height=480, fit="cover").astype(float)
    reference = bicubic(exact[:, 100:1180], 720, 480)
    error = ours - reference
    assert 10 * np.log10(255**2 / np.mean(error**2)) >= 49
    assert np.abs(error.mean((0, 1))).max() <= 0.5


def test_the_fast_path_that_this_avoids_is_darker() -> None:
    """So that the bias above is known to be able to fail: without full_chroma_int it is worse than a level."""
    data = make_video(images=[bars()], colorspace=BT709, color_range=LIMITED, **LOSSLESS)
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
        fast = frame.reformat(width=192, height=64, format="rgb24", interpolation="BICUBIC").to_ndarray()
    assert (middles(fast) - middles(decoded(data))).mean() < 0


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_reported(transfer: int) -> None:
    data = make_video(num_frames=1, pix_fmt="yuv420p10le", color_trc=transfer)
    assert probe(data).color_trc == transfer


def test_alpha_is_dropped_without_compositing() -> None:
    image = np.concatenate([bars(), np.full((64, 192, 1), 10, np.uint8)], -1)
    data = make_video(
        images=[image],
        image_format="rgba",
        pix_fmt="rgba",
        codec="png",
        container="mov",
        width=192,
        height=64,
        num_frames=1,
    )
    assert np.abs(middles(decoded(data)) - COLOURS).max() <= 1


def test_colour_tags_that_swscale_refuses_do_not_lose_the_video() -> None:
    """Reserved transfer and primaries, and "RGB" on YUV, as in mde__sample_mpeg2.m2v."""
    data = make_video(num_frames=6, color_trc=3, codec="mpeg2video", container="mpegts", time_base=Fraction(1, 24))
    clip = decode_clip(data, DecodeSpec(num_frames=1, fps=None, height=96, width=128))
    assert read_number(clip.frames[0]) == 0


def test_deinterlacing_touches_frames_flagged_interlaced_only() -> None:
    image = np.zeros((96, 128, 3), np.uint8)
    image[::2] = 255
    for interlaced in (False, True):
        flags = {"flags": "+ildct+ilme"} if interlaced else {}
        options = {"codec": "mpeg2video", "container": "mpegts", "time_base": Fraction(1, 24)}
        data = make_video(images=[image] * 6, num_frames=6, codec_options=flags | {"b": "9M"}, **options)
        spec = {"num_frames": 2, "fps": None, "height": 96, "width": 128}
        plain = decode_clip(data, DecodeSpec(**spec))  # type: ignore[arg-type]
        assert plain.facts()["interlaced"] is interlaced
        clip = decode_clip(data, DecodeSpec(**spec, deinterlace="spatial"))  # type: ignore[arg-type]
        combing = np.abs(np.diff(clip.frames[0].astype(int), axis=0)).mean()
        assert bool(combing < 60) is interlaced
