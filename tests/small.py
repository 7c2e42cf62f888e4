"""Small clips, specs and jobs that the tests of the stream share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

import vae
from pipeline.records import ChunkId, ClipFacts, Latent, Video, clip_id
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule, Spec
from tests.videos import make_video

HEALTHY = 900.0
"""Seconds that something healthy may take in a test: only what hangs takes so long, on however busy a machine."""

CLIP = ClipRule(num_frames=9, height=32, width=48, fps="8")
LATENT = LatentRule(dtype="bfloat16")


def spec(clip: ClipRule = CLIP, latent: LatentRule = LATENT, where: str = "tiny") -> Spec:
    """The Spec of a VAE, as a new run makes it."""
    info = replace(vae.load_vae(where, schedule=latent.schedule).info, exact_statistics=latent.dtype == "float32")
    return Spec(vae=info.to_json(), clip=clip, latent=latent)


def video(num_frames: int = 48, **kwargs: Any) -> Video:
    """A video of 2 s whose frame n encodes n."""
    return Video(shard="s", video=0, key="k", uri="s.tar#k.mp4", payload=_encoded(num_frames), **kwargs)


@cache
def _encoded(num_frames: int) -> bytes:
    """Once a process: x264 does not give the same bytes every time (dozens of kinds in 749 encodings, under load)."""
    return make_video(num_frames=num_frames, width=96, height=64)


def latent(video: int, clip: int, chunk: int = 0, num_chunks: int = 1, shape: tuple[int, ...] = (2, 1, 2, 3)) -> Latent:
    """A made-up latent that differs from every other one."""
    rng = np.random.default_rng([video, clip, chunk])
    payload = rng.integers(0, 1 << 14, shape).astype("<u2").tobytes()
    facts = ClipFacts(
        id=clip_id("s", video, clip),
        key=f"key{video}",
        caption=None,
        uri=f"s.tar#key{video}.mp4",
        start=str(clip),
        end=str(clip + 1),
        fps="4",
        num_frames=4 * num_chunks,
        height=16,
        width=24,
        timestamps=tuple(clip + chunk + i / 4 for i in range(4)),
        num_repaired=chunk,
        source=FACTS | {"first_frame": 4 * chunk},
        extra={"n": video},
    )
    return Latent(
        id=ChunkId(shard="s", video=video, clip=clip, chunk=chunk, num_chunks=num_chunks),
        payload=payload,
        shape=shape,
        dtype="bfloat16",
        facts=facts,
    )


FACTS = {
    "codec": "h264",
    "width": 32,
    "height": 24,
    "display_width": 32,
    "display_height": 24,
    "sar": "1/1",
    "rotation": 0,
    "flipped": False,
    "pix_fmt": "yuv420p",
    "colorspace": 2,
    "color_range": 0,
    "color_trc": 2,
    "color_primaries": 2,
    "crop": [0, 0, 32, 24],
    "placed": [0, 0, 24, 16],
    "interlaced": False,
    "time_base": "1/12000",
    "origin_ticks": 0,
}
