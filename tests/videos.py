"""Synthetic videos whose frame n encodes n, made with PyAV: constant and variable rate, rotated, truncated, odd, ...

Frame n shows n as a 4 x 4 grid of grey levels (16 bits, black or white) over a gradient that tells left from right and
top from bottom, so that tests can read back which frame was chosen and how it was turned, through a lossy codec and a
scaler.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

GRID = 4


def picture(n: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3] that encodes n: the bits in the middle, a red ramp across, a blue ramp down around."""
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)[None, :]
    image[..., 1] = 128
    image[..., 2] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    rows = np.linspace(height // 4, height - height // 4, GRID + 1).astype(int)
    columns = np.linspace(width // 4, width - width // 4, GRID + 1).astype(int)
    for bit in range(GRID * GRID):
        r, c = divmod(bit, GRID)
        image[rows[r] : rows[r + 1], columns[c] : columns[c + 1]] = 235 if n >> bit & 1 else 20
    return image


def read_number(frame: np.ndarray) -> int:
    """The n that an upright, uncropped frame [height, width, 3] encodes."""
    height, width = frame.shape[:2]
    rows = np.linspace(height / 4, height - height / 4, GRID + 1)
    columns = np.linspace(width / 4, width - width / 4, GRID + 1)
    number = 0
    for bit in range(GRID * GRID):
        r, c = divmod(bit, GRID)
        y, x = (rows[r] + rows[r + 1]) / 2, (columns[c] + columns[c + 1]) / 2
        number |= (int(frame[int(y), int(x)].mean()) > 128) << bit
    return number


def corners(frame: np.ndarray) -> tuple[bool, bool, bool]:
    """(red grows to the right, blue grows downwards, red grows downwards): which way up a frame is."""
    f = frame.astype(int)
    red, blue = f[..., 0], f[..., 2]
    edge = max(2, min(f.shape[:2]) // 16)
    across = red[:edge, -edge:].mean() - red[:edge, :edge].mean()
    down = red[-edge:, :edge].mean() - red[:edge, :edge].mean()
    return bool(across > 60), bool(blue[-edge:, :edge].mean() - blue[:edge, :edge].mean() > 60), bool(down > 60)


def make_video(
    *,
    times: Sequence[Fraction | float] | None = None,
    num_frames: int = 48,
    fps: Fraction | int = 24,
    width: int = 128,
    height: int = 96,
    codec: str = "libx264",
    container: str = "mp4",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    bframes: int = 2,
    rotation: int = 0,
    hflip: bool = False,
    sar: Fraction | None = None,
    colorspace: int | None = None,
    color_range: int | None = None,
    color_trc: int | None = None,
    metadata: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    tagged: bool = True,
    images: Sequence[np.ndarray] | None = None,
    image_format: str = "rgb24",
    time_base: Fraction = Fraction(1, 12000),
    audio_seconds: float = 0,
) -> bytes:
    """An encoded file. `times` are the frames' timestamps in seconds (else frame n is at n / fps).

    `images` replace the numbered pictures: arrays that PyAV takes for `image_format`. `colorspace` and `color_range`
    are applied and, with `tagged`, stated in the file.
    """
    stamps = [Fraction(n) / fps for n in range(num_frames)] if times is None else [Fraction(t) for t in times]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=container_options or {}) as out:
        out.metadata.update(metadata or {})
        stream = out.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        stream.options = _codec_options(codec, gop, bframes) | (codec_options or {})
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        for name, value in (("colorspace", colorspace), ("color_range", color_range), ("color_trc", color_trc)):
            if value is not None and tagged:
                setattr(stream.codec_context, name, value)
        if rotation or hflip:
            stream.set_display_rotation(rotation, hflip=hflip)
        sound = out.add_stream("aac", rate=8000) if audio_seconds else None
        for n, stamp in enumerate(stamps):
            image = images[n] if images is not None else picture(n, width, height)
            frame = av.VideoFrame.from_ndarray(image, format=image_format)
            if image_format != pix_fmt:
                frame = frame.reformat(format=pix_fmt, dst_colorspace=colorspace, dst_color_range=color_range)
            frame.colorspace = colorspace if colorspace and tagged else 2
            frame.color_range = color_range or 0
            frame.pts, frame.time_base = int(stamp / time_base), time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound is not None:
            _add_silence(out, sound, audio_seconds)
    return buffer.getvalue()


def make_image(width: int = 128, height: int = 96, n: int = 5, codec: str = "png") -> bytes:
    """A still image file: codec "png", "mjpeg" or "libwebp"."""
    pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p", "libwebp": "yuv420p"}[codec]
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = width, height, pix_fmt
    context.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(picture(n, width, height), format="rgb24").reformat(format=pix_fmt)
    frame.pts = 0
    packets = context.encode(frame) + context.encode(None)
    return b"".join(bytes(packet) for packet in packets)


def cut(data: bytes, share: float) -> bytes:
    """The first `share` of a file's bytes."""
    return data[: int(len(data) * share)]


def without_pts(mpegts: bytes, every: int) -> bytes:
    """An MPEG-TS file in which every so-many-th packet of the video has no timestamps (ISO/IEC 13818-1, 2.4.3.6)."""
    data, start, number = bytearray(mpegts), -1, 0
    while (start := data.find(b"\0\0\1\xe0", start + 1)) >= 0:
        number += 1
        if number % every == 0:
            data[start + 7] &= 0x3F  # PTS_DTS_flags
            data[start + 9 : start + 9 + data[start + 8]] = b"\xff" * data[start + 8]  # stuffing
    return bytes(data)


def flip_bytes(data: bytes, start: int, stop: int) -> bytes:
    """The file with bytes [start, stop) inverted."""
    return data[:start] + bytes(255 - b for b in data[start:stop]) + data[stop:]


def _codec_options(codec: str, gop: int, bframes: int) -> dict[str, str]:
    if codec == "libx264":
        return {
            "preset": "veryfast",
            "crf": "12",
            "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:threads=1",
        }
    if codec in ("libvpx", "libvpx-vp9"):
        return {"deadline": "realtime", "cpu-used": "8", "b": "2M"}
    return {}


def _add_silence(out: Any, sound: Any, seconds: float) -> None:
    for start in range(0, int(seconds * 8000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
        out.mux(sound.encode(frame))
    out.mux(sound.encode())
