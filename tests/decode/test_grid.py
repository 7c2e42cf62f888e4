"""Frames are chosen by time: at t, the last frame at or before t, on exact grids, whatever the frame rate does."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, iter_clips
from pipeline.errors import ClipTooShortError
from tests.videos import make_video, read_number


def spec(num_frames: int, fps: Fraction | int | None, **changes: object) -> DecodeSpec:
    rate = None if fps is None else Fraction(fps)
    return DecodeSpec(num_frames=num_frames, fps=rate, height=96, width=128, **changes)  # type: ignore[arg-type]


def numbers(clip: DecodedClip) -> list[int]:
    return [read_number(frame) for frame in clip.frames]


def vfr_times(seed: int, num_frames: int = 40) -> list[Fraction]:
    """Milliseconds that start anywhere and grow by 1 to 700 ms."""
    rng = random.Random(seed)
    times = [Fraction(rng.choice([0, 40, 1500]), 1000)]
    for _ in range(num_frames - 1):
        times.append(times[-1] + Fraction(rng.choice([1, 17, 33, 34, 100, 700]), 1000))
    return times


def chosen(times: list[Fraction], start: Fraction, fps: Fraction, n: int) -> list[int]:
    """The oracle: for each t the last frame at or before it, by linear search."""
    relative = [t - times[0] for t in times]
    picks = []
    for i in range(n):
        t = start + i / fps
        picks.append(max(k for k, at in enumerate(relative) if at <= t))
    return picks


@pytest.mark.parametrize("fps", [8, 24, 48, Fraction(30000, 1001), Fraction(1, 3), 7])
def test_constant_rate_takes_the_frame_on_screen(fps: Fraction | int) -> None:
    data = make_video(num_frames=60, fps=24)
    rate = Fraction(fps)
    n = int((Fraction(60, 24) * rate).__ceil__())
    clip = decode_clip(data, spec(n, rate))
    assert numbers(clip) == [(i / rate * 24).__floor__() for i in range(n)]
    assert clip.timestamps == tuple(Fraction(k, 24) for k in numbers(clip))
    assert clip.frames.flags.c_contiguous
    assert clip.frames.flags.owndata
    assert clip.frames.dtype == np.uint8


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_variable_rate_takes_the_frame_on_screen(seed: int, container: str) -> None:
    times = vfr_times(seed)
    data = make_video(times=times, time_base=Fraction(1, 1000), container=container, gop=8)
    duration = times[-1] - times[0]
    for fps, start in (
        (Fraction(8), Fraction(0)),
        (Fraction(30000, 1001), Fraction(1, 3)),
        (Fraction(3), duration / 2),
    ):
        n = int((duration - start) * fps)
        clip = decode_clip(data, spec(n, fps, start=start))
        assert numbers(clip) == chosen(times, start, fps, n)
        assert clip.timestamps == tuple(times[k] - times[0] for k in numbers(clip))
        assert not any(clip.repaired)


@pytest.mark.parametrize("start", [Fraction(0), Fraction(1, 1000), Fraction(1, 24), Fraction(1)])
def test_native_takes_consecutive_frames_from_start(start: Fraction) -> None:
    clip = decode_clip(make_video(num_frames=48, fps=24), spec(9, None, start=start))
    first = (start * 24).__ceil__()
    assert numbers(clip) == list(range(first, first + 9))
    assert clip.target_times == clip.timestamps
    assert clip.longest_hold == 0


def test_the_end_is_where_the_last_frames_time_is_up() -> None:
    data = make_video(num_frames=24, fps=24)
    assert numbers(decode_clip(data, spec(8, 8)))[-1] == 21
    with pytest.raises(ClipTooShortError, match=r"8 frames fit .*a clip has 9"):
        decode_clip(data, spec(9, 8))
    with pytest.raises(ClipTooShortError, match=r"24 .*25"):
        decode_clip(data, spec(25, None))


def test_short_videos_are_padded_or_cut_on_request() -> None:
    data = make_video(num_frames=10, fps=24)
    padded = decode_clip(data, spec(14, None, short="pad_last"))
    assert numbers(padded) == [*range(10), 9, 9, 9, 9]
    assert padded.num_duplicates == 4
    assert numbers(decode_clip(data, spec(14, None, short="truncate"))) == list(range(10))
    on_grid = decode_clip(data, spec(7, 8, short="pad_last"))
    assert numbers(on_grid) == [0, 3, 6, 9, 9, 9, 9]
    assert on_grid.longest_hold == Fraction(6, 8) - Fraction(9, 24)


@pytest.mark.parametrize("fps", [None, Fraction(8), Fraction(30000, 1001)])
def test_pieces_of_a_clip_equal_the_clip(fps: Fraction | None) -> None:
    data = make_video(times=vfr_times(1, 60), time_base=Fraction(1, 1000), container="matroska")
    start = Fraction(1, 7)
    whole = decode_clip(data, spec(33, fps, start=start))
    pieces = [(0, 9), (6, 14), (17, 16)]
    specs = [spec(n, fps, start=start, offset=offset) for offset, n in pieces]
    for (offset, n), piece in zip(pieces, iter_clips(data, specs), strict=True):
        assert isinstance(piece, DecodedClip)
        assert np.array_equal(piece.frames, whole.frames[offset : offset + n])
        assert piece.ticks == whole.ticks[offset : offset + n]
        assert piece.target_times == whole.target_times[offset : offset + n]
        assert piece.facts() == whole.facts() | {"first_frame": offset}


def test_overlapping_clips_come_in_order_and_equal_single_ones() -> None:
    data = make_video(num_frames=96, fps=24)
    specs = [spec(n, fps, start=start) for start, fps, n in ((0, 8, 20), (0, None, 3), (1, 8, 3), (1, 24, 50))]
    specs = [spec(s.num_frames, s.fps, start=Fraction(s.start)) for s in specs]
    for one, together in zip(specs, iter_clips(data, specs), strict=True):
        assert isinstance(together, DecodedClip)
        assert np.array_equal(together.frames, decode_clip(data, one).frames)


def test_specs_out_of_order_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="sorted"):
        list(iter_clips(b"", [spec(1, 8, start=Fraction(1)), spec(1, 8)]))
