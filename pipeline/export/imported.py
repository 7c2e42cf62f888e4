"""The way back: latents that were made elsewhere become an output, which every reading command takes.

    spec.json    the VAE as the user states it; vae.config.imported_from says where the latents come from
    plan/        the files that held them: a row of a table, or a torch file, counts as a video of one clip
    data/        a row each; one that cannot be read, or has another shape, is a rejection

No run of `encode` has the field imported_from in its Spec, so `encode` refuses such an output: it could not make these
latents again.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import vae
from latentmill.format import is_finite
from latentmill.tensors import factors
from pipeline.errors import ConfigError
from pipeline.export.import_job import ImportJob
from pipeline.output import shard_file
from pipeline.output.derived import derive
from pipeline.output.layout import data_path
from pipeline.plan.plan_file import PlanFile, load_members
from pipeline.records import ChunkId, ClipFacts, ClipKey, CompleteShard, Latent, Rejection, clip_id
from pipeline.runs.work import writing
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.resolve import scaling_numbers
from pipeline.settings.spec import LatentRule, Spec
from pipeline.shards import FileGroup, Shard
from pipeline.sources.latents import ForeignLatent, ForeignSource
from pipeline.stages.encode_chunk import to_bytes
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted
from vae.info import VAEInfo

log = logging.getLogger(__name__)

UNKNOWN_SOURCE = {"codec": "unknown"}
"""What is known of the video: nothing. Its size as displayed is taken to be that of the frames."""

Counts = Counter[str]
"""How many latents were imported ("latents"), and how many were rejected, by reason."""


def source_of(job: ImportJob) -> ForeignSource:
    """Return how the files of this origin are listed and read."""
    source: ForeignSource = import_module(f"pipeline.sources.latents.{job.origin}").SOURCE
    return source


def new_shards(job: ImportJob, files: Sequence[PlanFile]) -> Iterator[Shard]:
    """Yield the shards of the source that are in none of these plan files."""
    planned = set()
    for file in files:
        for shard in file.shards():
            members = load_members(shard)
            if isinstance(members, FileGroup):
                folder = Storage(shard.uri)
                planned |= {folder.address(video.path) for video in members.videos}
            else:
                planned.add(shard.uri)
    yield from source_of(job).list(Storage(job.source), job.shard_size, frozenset(planned))


def spec_of(job: ImportJob) -> Spec:
    """Return the Spec of an import. What the user does not state follows from the first latent of the source.

    Raises:
        ConfigError: the source holds no latent, its VAE cannot be loaded, or does not fit the first latent.
    """
    source = source_of(job)
    why, first = f"there is none of --from {job.origin}", None
    clips = (one for shard in source.list(Storage(job.source), 1, frozenset()) for one in source.read(shard, job.key))
    for one in clips:
        if isinstance(one, ForeignLatent):
            first = one
            break
        why = one.message
    if first is None:
        raise ConfigError(f"--source {redacted(job.source)}: no first latent to go by: {why}")
    if (fps := job.fps or first.fps) is None:
        raise ConfigError(f"--fps is needed: {first.uri} does not say how many frames of its video make a second")
    info = _vae_of(job, first)
    shape = "x".join(map(str, pixels_of(first, info)))
    clip = ClipRule(buckets=job.buckets or (shape,), fps=fps)
    rule = LatentRule(posterior=job.posterior, store_dtype=job.store_dtype or first.dtype, dtype="float32")  # type: ignore[arg-type]
    return Spec(vae=info.to_json(), clip=clip, latent=rule)


def import_shard(job: ImportJob, text: str, shard: Shard) -> Counts:
    """Commit the data file of a shard, unless one is there, and return what is in it.

    Args:
        text: the Spec as canonical JSON.

    Raises:
        StorageError: the storage failed, or a planned file has changed.
    """
    output, spec = Storage(job.output), Spec.from_json(text)
    members = load_members(shard)
    shard = replace(shard, members=members)
    num_videos = len(members.videos) if isinstance(members, FileGroup) else members.rows  # type: ignore[union-attr]
    rejections: dict[ClipKey, Rejection] = {}
    counts = Counts()

    def rows() -> Iterator[dict[str, Any]]:
        for video, one in enumerate(source_of(job).read(shard, job.key)):
            end = one if isinstance(one, Rejection) else latent_of(one, shard.name, video, spec, is_raw=job.is_raw)
            if isinstance(end, Rejection):
                rejections[video, 0] = end
                counts[end.reason] += 1
            else:
                counts["latents"] += 1
                yield shard_file.parquet_row(end)

    whole = CompleteShard(name=shard.name, planned=num_videos, latents={}, rejections=rejections)
    with tempfile.NamedTemporaryFile("w+b", suffix=".parquet") as sink:
        shard_file.write(sink, text, whole, rows())
        sink.flush()
        with writing():
            if not output.create(data_path(shard.name), Path(sink.name)):
                log.warning("%s was committed by another run with other bytes; that file is kept", shard.name)
            derive(output, shard.name, text)
    return counts


def latent_of(found: ForeignLatent, shard: str, video: int, spec: Spec, *, is_raw: bool) -> Latent | Rejection:
    """Return the latent of an output, or why it cannot be one."""
    info = VAEInfo(**spec.vae)

    def refused(reason: str, message: str) -> Rejection:
        return Rejection(reason=reason, stage="read", message=message, key=found.key, uri=found.uri, start="0")

    if found.values.shape[0] != info.latent_channels:
        return refused("bad_row", f"a latent of {found.values.shape[0]} channels, not of {info.latent_channels}")
    num_frames, height, width = pixels_of(found, info)
    if (num_frames, height, width) not in spec.clip.shapes:
        return refused("bad_row", f"a clip of {num_frames}x{height}x{width} is none of --buckets")
    z = torch.from_numpy(found.values)
    if is_raw:
        z = (z - factors(spec.vae["shift"], z)) * factors(spec.vae["scale"], z)
    payload = to_bytes(z, spec.latent.store_dtype)
    if not is_finite(payload, spec.latent.store_dtype):
        return refused("nonfinite", f"NaN or infinity in {spec.latent.store_dtype}")
    fps = Fraction(found.fps or spec.clip.fps)
    facts = ClipFacts(
        id=clip_id(shard, video, 0),
        key=found.key,
        caption=found.caption,
        uri=redacted(found.uri),
        start="0",
        end=str(num_frames / fps),
        fps=str(fps),
        num_frames=num_frames,
        height=height,
        width=width,
        timestamps=tuple(float(i / fps) for i in range(num_frames)),
        num_repaired=0,
        source=UNKNOWN_SOURCE | {"display_width": width, "display_height": height},
        extra=found.extra,
    )
    place = ChunkId(shard=shard, video=video, clip=0)
    shape = tuple(found.values.shape)
    return Latent(id=place, payload=payload, shape=shape, dtype=spec.latent.store_dtype, facts=facts)


def pixels_of(found: ForeignLatent, info: VAEInfo) -> tuple[int, int, int]:
    """Return (frames, height, width) of the clip of a latent, from its shape and the compression of its VAE."""
    _, frames, height, width = found.values.shape
    space = info.space_compression
    return 1 + (frames - 1) * info.time_compression, height * space, width * space


def _vae_of(job: ImportJob, first: ForeignLatent) -> VAEInfo:
    if job.vae:
        try:
            info = vae.load_vae(job.vae, schedule="whole").info
        except (vae.CheckpointError, ValueError, OSError) as error:
            raise ConfigError(f"--vae {job.vae!r}: {error}") from error
    else:
        info = VAEInfo(
            name=job.vae_name,
            config={},
            weights_sha256="unknown",
            in_channels=3,
            latent_channels=first.values.shape[0],
            time_compression=job.time_compression,
            space_compression=job.space_compression,
            scale=1.0,
            shift=0.0,
            schedule="whole",
            windowed=False,
            only_accepted_lengths=True,
        )
    if info.latent_channels != first.values.shape[0]:
        raise ConfigError(
            f"--vae {job.vae}: its latents have {info.latent_channels} channels, and {first.uri} has "
            f"{first.values.shape[0]}"
        )
    return replace(
        info,
        config=info.config | {"imported_from": job.origin},
        scale=info.scale if job.scale is None else scaling_numbers("--scale", job.scale, info),
        shift=info.shift if job.shift is None else scaling_numbers("--shift", job.shift, info),
    )
