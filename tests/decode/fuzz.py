"""Mutated videos through the decode functions, one after another, for a parent that watches.

    python -m tests.decode.fuzz SEED FIRST STOP

prints one line of JSON per file: its number, and what became of it. A crash ends the process; the parent starts a new
one at the next number.
"""

from __future__ import annotations

import json
import random
import sys
from fractions import Fraction
from functools import cache
from typing import Any

from pipeline.decode import DecodedClip, iter_clips, measure, probe
from pipeline.errors import VideoError
from pipeline.settings.clip_rule import ClipRule
from pipeline.stages.clip_grid import plan_clips
from tests.videos import make_image, make_video

_MAX_CLIPS = 6


@cache
def corpus() -> list[bytes]:
    """Small sound files of many containers and codecs."""
    small: dict[str, Any] = {"num_frames": 20, "width": 64, "height": 48, "gop": 7}
    ticks = {"time_base": Fraction(1, 24)}
    millis = {"time_base": Fraction(1, 1000)}
    return [
        make_video(**small),
        make_video(**small, rotation=90, container="mov", audio_seconds=1),
        make_video(**small, container_options={"movflags": "frag_keyframe+empty_moov"}),
        make_video(**small, container="matroska", audio_seconds=1),
        make_video(**small, container="webm", codec="libvpx-vp9", **millis),
        make_video(**small, container="webm", codec="libvpx", **millis),
        make_video(**small, container="mpegts"),
        make_video(**small, container="mpeg", codec="mpeg2video", **ticks),
        make_video(**small, container="avi", codec="mpeg4", **ticks),
        make_video(**small, container="avi"),
        make_video(**small, container="flv", **millis),
        make_video(**small, container="asf", codec="msmpeg4", **ticks),
        make_video(**small, container="h264"),
        make_video(**small, codec="libx265", pix_fmt="yuv420p10le"),
        make_video(**small, container="matroska", codec="ffv1"),
        make_video(num_frames=8, fps=10, container="gif", codec="gif", pix_fmt="rgb8", time_base=Fraction(1, 100)),
        make_image(codec="png"),
        make_image(codec="mjpeg"),
        make_image(codec="libwebp"),
    ]


def mutated(rng: random.Random) -> bytes:
    """One file of the corpus with one to four wounds: bytes flipped, cut out, cut off, repeated, spliced, zeroed."""
    data = bytearray(rng.choice(corpus()))
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not data:
            break
        head = rng.random() < 0.4
        at = rng.randrange(min(len(data), 600) if head else len(data))
        length = min(rng.choice((1, 4, 16, 200, 2000)), len(data) - at)
        match rng.choice(("flip", "flip", "random", "zero", "cut", "end", "repeat", "splice")):
            case "flip":
                for _ in range(rng.choice((1, 3, 20))):
                    data[rng.randrange(at, at + length)] ^= 1 << rng.randrange(8)
            case "random":
                data[at : at + length] = rng.randbytes(length)
            case "zero":
                data[at : at + length] = bytes(length)
            case "cut":
                del data[at : at + length]
            case "end":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + length]
            case "splice":
                other = rng.choice(corpus())
                start = rng.randrange(len(other))
                data[at : at + length] = other[start : start + length]
    return bytes(data)


def verdict(data: bytes) -> str:
    """What becomes of a file: the outcomes of its clips, or the reason for which it is refused whole."""
    rule = ClipRule(num_frames=5, height=32, width=48, clips="all", max_clips=_MAX_CLIPS, max_pixels=1 << 20)
    try:
        clips = plan_clips(probe(data), measure(data), rule)
    except VideoError as error:
        return error.reason
    results = list(iter_clips(data, [clip.spec for clip in clips]))
    assert len(results) == len(clips)
    for result in results:
        if isinstance(result, DecodedClip):
            assert result.frames.shape in ((5, 32, 48, 3), (1, 32, 48, 3))
            json.dumps(result.facts())
    outcomes = ["ok" if isinstance(result, DecodedClip) else result.reason for result in results]
    return "+".join(sorted(set(outcomes)))


def main() -> None:
    seed, first, stop = (int(argument) for argument in sys.argv[1:])
    for number in range(first, stop):
        print(json.dumps({"start": number}), flush=True)
        outcome = verdict(mutated(random.Random(f"{seed}/{number}")))
        print(json.dumps({"number": number, "outcome": outcome}), flush=True)


if __name__ == "__main__":
    main()
