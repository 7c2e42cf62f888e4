"""Clips to train and to judge `tiny` on: made ones from a seed, and those of a folder of real videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.demo.scenes import Scene
from pipeline.decode import DecodeSpec, decode_clip, measure
from pipeline.errors import VideoError

Clip = npt.NDArray[np.uint8]
"""uint8 [T, H, W, 3]."""

FRAMES, HEIGHT, WIDTH = 9, 128, 192
SLOW = Fraction(8)
"""Frames per second of every second clip to train on. The others have consecutive frames."""

HELD_OUT = ("mdn__frog", "mdn__crystal", "torchcodec__nasa_13013", "exoplayer__video_desks", "androidx__roadtrip")
"""Beginnings of the names of the videos that are never trained on, only judged."""


def clips_to_train_on(folder: Path | None, per_video: int) -> list[Clip]:
    """Return clips of the videos in a folder that are not held out."""
    found = []
    for path in sorted(folder.iterdir()) if folder else ():
        if not path.name.startswith(HELD_OUT):
            found += _clips(path, per_video, (None, SLOW))
    return found


def clips_to_judge(folder: Path | None) -> dict[str, list[Clip]]:
    """Return three clips of consecutive frames of each video that is held out."""
    paths = sorted(path for path in folder.iterdir() if path.name.startswith(HELD_OUT)) if folder else []
    return {path.name: clips for path in paths if (clips := _clips(path, 3, (None,)))}


def made_clip(seed: int) -> Clip:
    """Draw a clip of a made scene."""
    scene = Scene(seed, HEIGHT, WIDTH)
    return np.stack([scene.frame(t / float(SLOW)) for t in range(FRAMES)])


def _clips(path: Path, count: int, rates: tuple[Fraction | None, ...]) -> list[Clip]:
    """Return up to `count` clips of a file, evenly spread, their frame rates in turn; none if it is no video."""
    data, clips = path.read_bytes(), []
    try:
        room = max(Fraction(measure(data).duration) - FRAMES / SLOW, Fraction(0))
    except VideoError:
        return []
    starts = dict.fromkeys(room * i / max(count - 1, 1) for i in range(count))
    for i, start in enumerate(starts):
        rate = rates[i % len(rates)]
        spec = DecodeSpec(num_frames=FRAMES, fps=rate, height=HEIGHT, width=WIDTH, start=start, filter="area")
        try:
            clips.append(decode_clip(data, spec).frames)
        except VideoError:
            continue
    return clips
