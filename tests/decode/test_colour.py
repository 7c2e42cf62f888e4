"""Colours: the right matrix and range, no darkening, near the float reference; HDR and alpha by stated policy."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from pipeline.decode import DecodeSpec, decode_clip, probe
from pipeline.decode.graph import Converter, frame_kind
from tests.videos import make_image, make_video, read_number

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


@pytest.mark.parametrize(
    ("width", "height", "by_size", "auto"),
    [
        (192, 64, "bt601", "bt601"),
        (192, 718, "bt601", "bt601"),
        (192, 720, "bt709", "bt709"),
        (1278, 64, "bt601", "bt601"),
        (1280, 64, "bt709", "bt601"),
    ],
)
def test_untagged_video_is_taken_for_what_its_size_suggests_and_the_row_says_so(
    width: int, height: int, by_size: str, auto: str
) -> None:
    """Untagged is told by the flag, tagged never is. The colours are those of the matrix that the facts name."""
    size = {"width": width, "height": height}
    means = {"by_size": by_size, "auto": auto, "ffmpeg": "bt601", "bt601": "bt601", "bt709": "bt709"}
    for name, matrix in (("bt601", BT601), ("bt709", BT709)):
        made = {"images": [bars(**size)], "colorspace": matrix, "color_range": LIMITED, **LOSSLESS, **size}
        untagged, tagged = make_video(tagged=False, **made), make_video(**made)
        for policy, meant in means.items():
            spec = DecodeSpec(num_frames=1, fps=None, height=64, width=192, fit="stretch", untagged_colorspace=policy)
            clip, told = decode_clip(untagged, spec), decode_clip(tagged, spec)
            stated = None if policy in ("ffmpeg", "auto") else meant  # Specs of before this fact keep their rows
            assert (clip.facts()["colorspace"], clip.facts().get("untagged_as")) == (2, stated)
            assert bool(np.abs(middles(clip.frames[0]) - COLOURS).max() <= 3) is (meant == name)
            assert (told.facts()["colorspace"], told.facts().get("untagged_as")) == (matrix, None)
            assert np.abs(middles(told.frames[0]) - COLOURS).max() <= 3
            if policy == "by_size":
                assert DecodeSpec(num_frames=1, fps=None, height=64, width=192, fit="stretch") == spec


@pytest.mark.parametrize("codec", ["png", "mjpeg"])
def test_stills_state_their_matrix_or_need_none(codec: str) -> None:
    """JPEG is BT.601 by its standard, whatever its size."""
    clip = decode_clip(make_image(1280, 720, codec=codec), DecodeSpec(num_frames=1, fps=None, height=64, width=64))
    assert "untagged_as" not in clip.facts()


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


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv444p10le", "yuv422p12le", "gray", "gray10le"])
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
def test_grey_is_as_bright_as_its_samples_say(pix_fmt: str, color_range: int) -> None:
    frame = av.VideoFrame(1024, 32, pix_fmt)
    bits = frame.format.components[0].bits
    largest, step = 2**bits - 1, 2 ** (bits - 8)
    luma = np.linspace(0, largest, 1024).round()
    for number, plane in enumerate(frame.planes):
        samples = np.full((plane.height, plane.line_size * 8 // (8 if bits == 8 else 16)), 128 * step)
        if number == 0:
            samples[:, :1024] = luma
        plane.update(samples.astype(np.uint8 if bits == 8 else np.uint16).tobytes())
    frame.colorspace, frame.color_range = BT709, color_range
    exact = luma / largest if color_range == FULL else (luma - 16 * step) / (219 * step)
    ours = np.empty((32, 1024, 3), np.uint8)
    spec = DecodeSpec(num_frames=1, fps=None, height=32, width=1024)
    Converter(frame_kind(frame, Fraction(1)), spec).into(frame, ours)
    error = ours[8:24] - np.clip(exact, 0, 1)[None, :, None] * 255
    parts = np.abs([error[:, start : start + 128].mean() for start in range(0, 1024, 128)])
    assert max(parts) <= 0.2


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_reported(transfer: int) -> None:
    data = make_video(num_frames=1, pix_fmt="yuv420p10le", color_trc=transfer)
    assert probe(data).color_trc == transfer


def veiled() -> np.ndarray:
    """uint8 [64, 192, 4]: the bars, whose alpha rises from nothing at the left to opaque at the right."""
    alpha = np.repeat(np.linspace(0, 255, 192).round()[None, :, None], 64, 0).astype(np.uint8)
    return np.concatenate([bars(), alpha], -1)


def veiled_video(codec: str, container: str, pix_fmt: str) -> bytes:
    return make_video(
        images=[veiled()], image_format="rgba", pix_fmt=pix_fmt, codec=codec, container=container, width=192, height=64,
        num_frames=1, time_base=Fraction(1, 24), colorspace=BT709, color_range=LIMITED,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "container", "pix_fmt"),
    [
        ("png", "mov", "rgba"),
        ("png", "mov", "rgba64be"),
        ("apng", "apng", "rgba"),
        ("qtrle", "mov", "argb"),
        ("ffv1", "matroska", "bgra"),
        ("ffv1", "matroska", "yuva420p"),
        ("ffv1", "matroska", "yuva444p10le"),
        ("prores_ks", "mov", "yuva444p10le"),
    ],
)
def test_transparency_is_laid_on_black(codec: str, container: str, pix_fmt: str) -> None:
    data = veiled_video(codec, container, pix_fmt)
    clip = decode_clip(data, DecodeSpec(num_frames=1, fps=None, height=64, width=192))
    assert clip.facts()["alpha"] == "black"
    with av.open(io.BytesIO(data)) as container_:
        frame = next(container_.decode(video=0))
    opaque = np.empty((64, 192, 3), np.uint8)
    Converter(replace(frame_kind(frame, Fraction(1)), alpha=None), clip.spec).into(frame, opaque)
    assert np.abs(middles(opaque) - COLOURS).max() <= 3
    wanted = opaque * (veiled()[..., 3:] / 255)
    assert np.abs(clip.frames[0] - wanted).max() <= 3
    assert clip.frames[0, :, 0].max() <= 1


def test_what_hides_in_a_transparent_part_does_not_bleed_in_when_it_is_scaled() -> None:
    image = np.zeros((64, 192, 4), np.uint8)
    image[:, ::2] = [0, 255, 0, 0]  # green, transparent
    image[:, 1::2] = [200, 200, 200, 255]
    data = make_video(
        images=[image], image_format="rgba", pix_fmt="rgba", codec="png", container="mov", width=192, height=64,
        num_frames=1,
    )  # fmt: skip
    frame = decoded(data, width=48, height=16)
    assert np.ptp(frame.astype(int), axis=-1).max() == 0


def test_an_opaque_picture_with_alpha_keeps_its_bytes() -> None:
    rng = np.random.default_rng(0)
    frame = av.VideoFrame.from_ndarray(
        np.concatenate([rng.integers(0, 256, (64, 192, 3)), np.full((64, 192, 1), 255)], -1).astype(np.uint8), "rgba"
    )
    kind, spec = frame_kind(frame, Fraction(1)), DecodeSpec(num_frames=1, fps=None, height=32, width=64)
    on_black, plain = np.empty((2, 32, 64, 3), np.uint8)
    Converter(kind, spec).into(frame, on_black)
    Converter(replace(kind, alpha=None), spec).into(frame, plain)
    assert np.array_equal(on_black, plain)


@pytest.mark.parametrize(
    ("codec", "container", "pix_fmt"), [("libvpx-vp9", "webm", "yuva420p"), ("rawvideo", "avi", "bgra")]
)
def test_transparency_that_is_dropped_is_told(codec: str, container: str, pix_fmt: str) -> None:
    """WebM's, which the decoder does not see; and that of raw video, whose fourth byte means nothing as a rule."""
    data = veiled_video(codec, container, pix_fmt)
    clip = decode_clip(data, DecodeSpec(num_frames=1, fps=None, height=64, width=192))
    assert clip.facts()["alpha"] == "dropped"
    assert np.abs(middles(clip.frames[0]) - COLOURS).max() <= 12


def test_video_without_transparency_says_nothing_of_it() -> None:
    for codec, container, pix_fmt in (("libx264", "mp4", "yuv420p"), ("rawvideo", "avi", "yuv420p")):
        data = make_video(num_frames=1, codec=codec, container=container, pix_fmt=pix_fmt, time_base=Fraction(1, 24))
        assert decode_clip(data, DecodeSpec(num_frames=1, fps=None, height=64, width=64)).facts().get("alpha") is None


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
