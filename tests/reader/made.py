"""Outputs for the reader's tests: made-up latents of several shapes, committed by the job's own functions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.output.commit import commit, seal
from pipeline.output.parts import stage
from pipeline.output.spec_file import write_spec
from pipeline.records import CompleteShard, Latent, clip_id
from pipeline.settings.spec import LatentRule, Spec
from pipeline.storage import Storage
from tests.small import LATENT, latent, spec

SHAPES = ((2, 1, 2, 3), (2, 2, 4, 3), (2, 2, 3, 4))
SIZES = {SHAPES[0]: (16, 24), SHAPES[1]: (32, 24), SHAPES[2]: (24, 32)}


def shard_names(num_shards: int) -> list[str]:
    return [f"{i:06d}-{i:012x}" for i in range(num_shards)]


def write_output(
    where: str | Path, num_shards: int = 3, clips: int = 8, rule: LatentRule = LATENT, *, is_sealed: bool = True
) -> Spec:
    """Commit shards of `clips` rows each, of three shapes in turn; every third row has no caption."""
    output, made = Storage(str(where)), spec(latent=rule)
    write_spec(output, made)
    for shard in shard_names(num_shards):
        write_shard(output, made, shard, clips)
    if is_sealed:
        seal(output, shard_names(num_shards))
    return made


def write_shard(output: Storage, made: Spec, shard: str, clips: int) -> None:
    done = {}
    for clip in range(clips):
        stage(made_latent(shard, clip, made.latent), output)
        done[clip, 0] = 1
    committed = commit(output, made.to_json(), CompleteShard(name=shard, planned=clips, latents=done, rejections={}))
    assert not committed.missing


def made_latent(shard: str, clip: int, rule: LatentRule) -> Latent:
    """Normal numbers, fixed by shard and clip."""
    import torch

    from pipeline.stages.encode_chunk import to_bytes

    shape = SHAPES[clip % 3]
    height, width = SIZES[shape]
    stored = (2 * shape[0], *shape[1:]) if rule.posterior == "moments" else shape
    rng = np.random.default_rng([int(shard[:6]), clip])
    values = torch.from_numpy(rng.normal(size=stored).astype(np.float32))
    base = latent(clip, 0, shape=shape)
    facts = replace(
        base.facts,
        id=clip_id(shard, clip, 0),
        height=height,
        width=width,
        key=f"{shard[:6]}/{clip}",
        caption=None if clip % 3 == 2 else f"caption {clip} of {shard[:6]}",
    )
    payload = to_bytes(values, rule.store_dtype)
    place = replace(base.id, shard=shard)
    return replace(base, id=place, payload=payload, shape=stored, dtype=rule.store_dtype, facts=facts)
