"""Show what was rejected: the first frame of some rejected videos, where one can be decoded."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from jobs.report.samples import data_uri
from pipeline.errors import LatentmillError
from pipeline.plan.frozen import Plan
from pipeline.records import Chunk, ClipKey
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import Spec
from pipeline.stages.decode_video import Decoder
from pipeline.verify.decode_again import decode_again
from vae.info import VAEInfo


def add_pictures(rejections: list[dict[str, Any]], plan: Plan, spec: Spec) -> None:
    """Put the first frame of its video, as a data URI, into the `picture` of each example where one comes out."""
    wanted: defaultdict[str, defaultdict[ClipKey, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for one in rejections:
        for example in one["examples"]:
            if example["stage"] != "read":
                wanted[example["shard"]][example["video"], 0].append(example)
    _, height, width = spec.clip.shapes[0]
    first_frame = ClipRule(num_frames=1, height=height, width=width, on_error="skip")
    decoder = Decoder(clip=first_frame, latent=spec.latent, info=VAEInfo(**spec.vae), deadline=30.0)
    for shard in plan:
        if shard.name not in wanted:
            continue
        examples = wanted[shard.name]
        try:
            for clip, record in decode_again(shard, examples, (), decoder):
                if isinstance(record, Chunk):
                    for example in examples[clip]:
                        example["picture"] = data_uri(record.frames[0])
        except LatentmillError:  # the reason stands beside the example
            continue
