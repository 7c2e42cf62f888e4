"""Arithmetic of frames: windows, chunks, latent shapes, accepted frame counts. Pure integers, no torch.

A clip of T frames is encoded window by window. The reference schedule `batched8` cuts it as diffusers'
AutoencoderKLCogVideoX.encode does: windows of 8 frames, the first one takes the remainder.

    T = 21:  [0 .. 13)  [13 .. 21)         windows (13, 8), latents 4 + 2 = 6 = 1 + 20 / 4

A clip with more than `chunk_windows` windows is cut on that grid into several chunks, which pass through the stages
one by one:

    T = 33, chunk_windows 2, context 1:    windows (9, 8, 8, 8)
    chunk 0   body    [0 .. 17)            windows (9, 8)
    chunk 1   context [9 .. 17)  body [17 .. 33)   windows (8, 8, 8), the first one only fills the caches

The windows of `causal4` are 1, 4, 4, ...; their encoder's receptive field in time is bounded, so a context of that
length makes every chunk exact.

Every range is half-open.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

Schedule = Literal["batched8", "whole", "causal4"]
"""batched8: windows of 8 frames (diffusers parity, constant memory). whole: one pass over the clip (SAT parity).
causal4: frame 0, then windows of 4 frames (Wan)."""

PoolRule = Literal["first", "parity"]
"""How temporal pooling groups frames. first: frame 0 alone, the rest in pairs, a last one without a pair is dropped
(MoVQ, SAT). parity: frame 0 alone if and only if the number of frames is odd, so nothing is dropped (diffusers)."""

WINDOW = 8
"""Frames of every window but the first in `batched8` (`num_sample_frames_batch_size` of AutoencoderKLCogVideoX)."""

CAUSAL_WINDOW = 4
"""Frames of every window but the first, which is frame 0, in `causal4` (AutoencoderKLWan)."""


def window_lengths(num_frames: int, schedule: Schedule = "batched8") -> tuple[int, ...]:
    """Cut a clip into windows; the lengths add up to `num_frames`.

    Raises:
        ValueError: no frames, or with `causal4` a number other than 1 + 4k.
    """
    check_schedule(schedule)
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    if schedule == "causal4":
        if not accepts_frames(num_frames, CAUSAL_WINDOW):
            raise ValueError(f"num_frames must be 1 + {CAUSAL_WINDOW}k, got {num_frames}")
        return (1,) + (CAUSAL_WINDOW,) * (num_frames // CAUSAL_WINDOW)
    if schedule == "whole" or num_frames < WINDOW:
        return (num_frames,)
    return (WINDOW + num_frames % WINDOW,) + (WINDOW,) * (num_frames // WINDOW - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkSpan:
    """The frames of one chunk, as indices into the clip."""

    start: int
    """First frame of the chunk, context included."""
    body: int
    """First frame whose latents are kept; [start, body) is context."""
    stop: int
    """One past the last frame."""
    windows: tuple[int, ...]
    """Lengths of all windows from `start` to `stop`, context first."""
    num_context_windows: int
    """How many of `windows` are context, which only fills the caches."""


def chunk_spans(
    num_frames: int, *, chunk_windows: int, context: int | None, schedule: Schedule = "batched8"
) -> tuple[ChunkSpan, ...]:
    """Cut a clip into chunks of at most `chunk_windows` body windows on the window grid.

    Args:
        num_frames: frames of the clip.
        chunk_windows: body windows per chunk; a clip with no more than this is one chunk, which is exact.
        context: windows before the body that each later chunk encodes again to fill the caches. The result is exact
            if they reach back to the clip's first frame. None never cuts, which is exact too.
        schedule: `whole` is never cut, because its normalisation uses all frames of the clip.
    """
    if chunk_windows < 1:
        raise ValueError(f"chunk_windows must be at least 1, got {chunk_windows}")
    if context is not None and context < 0:
        raise ValueError(f"context must be None (exact) or at least 0, got {context}")
    windows = window_lengths(num_frames, schedule)
    if context is None or len(windows) <= chunk_windows:
        return (ChunkSpan(start=0, body=0, stop=num_frames, windows=windows, num_context_windows=0),)
    edges = (0, *accumulate(windows))
    spans = []
    for first in range(0, len(windows), chunk_windows):
        last = min(first + chunk_windows, len(windows))
        warm = max(first - context, 0)
        spans.append(
            ChunkSpan(
                start=edges[warm],
                body=edges[first],
                stop=edges[last],
                windows=windows[warm:last],
                num_context_windows=first - warm,
            )
        )
    return tuple(spans)


def pooled_frames(num_frames: int, time_compression: int, rule: PoolRule) -> int:
    """Return the number of latent frames that one forward pass makes of `num_frames` frames.

    Raises:
        ValueError: with rule `first`, a level gets exactly two frames, and the second of them has no pair.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    num_left = num_frames
    for _ in range(_num_halvings(time_compression)):
        if rule == "first" and num_left == 2:
            raise ValueError(
                f"{num_frames} frames cannot be compressed {time_compression}x in time: a pool is left with 2 frames, "
                f"the first stays alone and the second has no pair; use 1 frame or more than {time_compression}"
            )
        num_left = num_left // 2 if rule == "parity" and num_left % 2 == 0 else 1 + (num_left - 1) // 2
    return num_left


def latent_frames(num_frames: int, *, time_compression: int = 4, schedule: Schedule = "batched8") -> int:
    """Return the number of latent frames of a clip: 1 + (T-1)/c for T = 1 + c*k, else the reference's number."""
    if schedule == "whole":
        return pooled_frames(num_frames, time_compression, "first")
    return sum(pooled_frames(n, time_compression, "parity") for n in window_lengths(num_frames, schedule))


def accepts_frames(num_frames: int, time_compression: int) -> bool:
    """Return whether a job takes clips of this length: T = 1 + c*k, so that all frames of a latent weigh the same."""
    return num_frames >= 1 and (num_frames - 1) % time_compression == 0


def nearest_frames(num_frames: int, time_compression: int) -> tuple[int | None, int]:
    """Return the nearest accepted frame counts (at or below, at or above); below is None if there is none."""
    if num_frames < 1:
        return None, 1
    below = num_frames - (num_frames - 1) % time_compression
    return below, below if below == num_frames else below + time_compression


def check_schedule(schedule: str) -> None:
    """Raise ValueError if `schedule` is not a Schedule."""
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {schedule!r}")


def _num_halvings(compression: int) -> int:
    if compression < 1 or compression & (compression - 1):
        raise ValueError(f"time compression must be a power of two, got {compression}")
    return compression.bit_length() - 1
