"""Windows, chunks and frame counts: pure arithmetic, held against the reference's batching and against each other."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae.shapes import (
    accepts_frames,
    chunk_spans,
    latent_frames,
    nearest_frames,
    pooled_frames,
    window_lengths,
)


@pytest.mark.parametrize(
    ("num_frames", "windows"),
    [(1, (1,)), (7, (7,)), (8, (8,)), (13, (13,)), (15, (15,)), (16, (8, 8)), (17, (9, 8)), (49, (9, 8, 8, 8, 8, 8))],
)
def test_windows_of_the_reference_schedule(num_frames: int, windows: tuple[int, ...]) -> None:
    assert window_lengths(num_frames, "batched8") == windows
    assert window_lengths(num_frames, "whole") == (num_frames,)


@pytest.mark.parametrize(
    ("num_frames", "rule", "latents"),
    [
        *((1, "first", 1), (5, "first", 2), (7, "first", 2), (9, "first", 3), (16, "first", 4), (17, "first", 5)),
        *((9, "parity", 3), (8, "parity", 2), (10, "parity", 3), (2, "parity", 1), (3, "parity", 1)),
    ],
)
def test_pooled_frames(num_frames: int, rule: str, latents: int) -> None:
    assert pooled_frames(num_frames, 4, rule) == latents  # type: ignore[arg-type]


@pytest.mark.parametrize(("compression", "refused"), [(2, {2}), (4, {2, 3, 4}), (8, {2, 3, 4, 5, 6, 7, 8})])
def test_a_whole_clip_refuses_exactly_what_the_reference_refuses(compression: int, refused: set[int]) -> None:
    found = set()
    for num_frames in range(1, 40):
        try:
            pooled_frames(num_frames, compression, "first")
        except ValueError:
            found.add(num_frames)
    assert found == refused


@given(k=st.integers(0, 300), compression=st.sampled_from([1, 2, 4, 8]))
def test_both_schedules_agree_on_accepted_lengths(k: int, compression: int) -> None:
    num_frames = 1 + compression * k
    assert accepts_frames(num_frames, compression)
    for schedule in ("batched8", "whole"):
        assert latent_frames(num_frames, time_compression=compression, schedule=schedule) == 1 + k


@given(num_frames=st.integers(1, 5000), compression=st.sampled_from([1, 4, 8]))
def test_nearest_frames_surround(num_frames: int, compression: int) -> None:
    below, above = nearest_frames(num_frames, compression)
    assert below is not None
    assert below <= num_frames <= above
    assert accepts_frames(below, compression)
    assert accepts_frames(above, compression)
    assert above - below in (0, compression)


def test_nearest_of_nothing() -> None:
    assert nearest_frames(0, 4) == (None, 1)


@given(
    num_frames=st.integers(1, 800),
    chunk_windows=st.integers(1, 40),
    context=st.one_of(st.none(), st.integers(0, 50)),
    schedule=st.sampled_from(["batched8", "whole"]),
)
def test_chunks_tile_the_clip_on_its_window_grid(
    num_frames: int, chunk_windows: int, context: int | None, schedule: str
) -> None:
    spans = chunk_spans(num_frames, chunk_windows=chunk_windows, context=context, schedule=schedule)  # type: ignore[arg-type]
    windows = window_lengths(num_frames, schedule)  # type: ignore[arg-type]
    assert spans[0].start == spans[0].body == 0
    assert spans[-1].stop == num_frames
    assert [a.stop for a in spans[:-1]] == [b.body for b in spans[1:]]
    bodies = [w for span in spans for w in span.windows[span.num_context_windows :]]
    assert tuple(bodies) == windows
    for span in spans:
        assert sum(span.windows) == span.stop - span.start
        assert sum(span.windows[: span.num_context_windows]) == span.body - span.start
        assert len(span.windows) - span.num_context_windows <= chunk_windows or len(spans) == 1
        assert span.num_context_windows <= (context or 0)
        assert span.num_context_windows == (context or 0) or span.start == 0
    if context is None or schedule == "whole" or len(windows) <= chunk_windows:
        assert len(spans) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: window_lengths(0, "batched8"), "at least 1, got 0"),
        (lambda: window_lengths(9, "batched"), "batched8, whole, causal4, got 'batched'"),
        (lambda: window_lengths(8, "causal4"), r"1 \+ 4k, got 8"),
        (lambda: chunk_spans(9, chunk_windows=0, context=1), "chunk_windows must be at least 1, got 0"),
        (lambda: chunk_spans(9, chunk_windows=1, context=-1), "at least 0, got -1"),
        (lambda: pooled_frames(9, 6, "first"), "power of two, got 6"),
        (lambda: pooled_frames(3, 4, "first"), "3 frames cannot be compressed 4x"),
    ],
)
def test_bad_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_shapes_and_info_import_no_torch() -> None:
    code = "import sys, vae.shapes, vae.info; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
