"""Everything that can be known to be wrong before Ray starts, and the Spec that follows from a Job."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import vae
from pipeline.clips import ClipRule
from pipeline.errors import ConfigError
from pipeline.job import Job, Workers
from pipeline.spec import LatentRule, Spec
from pipeline.storage import Storage
from vae.info import VAEInfo
from vae.shapes import WINDOW, chunk_spans

IO_BLOCK_BYTES = 8_000_000
"""Small samples and small chunks share a block of this size for transport. A block costs about 10 ms, and work is
staged block by block: larger ones hold up the first result and repeat more work after a kill."""

BLOCKS_IN_FLIGHT = 8
"""Blocks of the largest chunk that must fit into Ray Data's half of the object store: two each at the output of decode,
at the input of encode, and under way (measured: 597 MB peak at 50 MB a chunk, 8 would be 400)."""


def resolve(job: Job) -> tuple[Spec, VAEInfo]:
    """The Spec of a job, every value resolved, and the facts of its VAE.

    Raises:
        ConfigError: the VAE cannot be loaded, or cannot take the clips that were asked for.
    """
    try:
        info = vae.load_vae(job.vae, schedule=job.latent.schedule).info
    except (vae.CheckpointError, ValueError, OSError) as error:
        raise ConfigError(f"--vae {job.vae!r}: {error}") from error
    for num_frames, height, width in job.clip.shapes:
        _check_shape(num_frames, height, width, info, job.latent)
    return Spec(vae=info.to_json(), clip=job.clip, latent=job.latent), info


def _check_shape(num_frames: int, height: int, width: int, info: VAEInfo, latent: LatentRule) -> None:
    if not info.accepts(num_frames):
        below, above = info.nearest(num_frames)
        nearest = f"{above}" if below is None else f"{below} or {above}"
        raise ConfigError(
            f"--num-frames must be {info.frame_rule} for {info.name}, got {num_frames}; nearest: {nearest}"
        )
    try:
        info.latent_shape(num_frames, height, width)
    except ValueError as error:
        raise ConfigError(f"--num-frames {num_frames} --height {height} --width {width}: {error}") from error
    longest = latent.chunk_windows * WINDOW + WINDOW - 1
    if not info.windowed and num_frames > longest:
        raise ConfigError(
            f"--num-frames must be at most {longest} (--chunk-windows {latent.chunk_windows} of {WINDOW} frames), got "
            f"{num_frames}: --schedule {info.schedule} of {info.name} cannot be cut into chunks"
        )


def largest_chunk_bytes(clip: ClipRule, latent: LatentRule, info: VAEInfo) -> int:
    """Bytes of the largest chunk of frames that a run can send, context included."""
    return max(
        (span.stop - span.start) * height * width * 3
        for num_frames, height, width in clip.shapes
        for span in chunk_spans(
            num_frames,
            chunk_windows=latent.chunk_windows,
            context=latent.context_windows if info.windowed else None,
            schedule=info.schedule,
        )
    )


def largest_clip(clip: ClipRule) -> tuple[int, int, int]:
    """(T, H, W) of the largest clip, for the encoder's self-check, which takes its first window."""
    return max(clip.shapes, key=lambda shape: shape[0] * shape[1] * shape[2])


def block_bytes(chunk_bytes: int) -> int:
    """Ray's target block size: just under one chunk, or a common block for small ones."""
    return max(int(0.9 * chunk_bytes), IO_BLOCK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """How many workers of each kind run on this cluster, and what each reserves."""

    readers: int
    stagers: int
    decode_cpus: float
    decoders: tuple[int, int]
    """Decode tasks at a time: that fit beside all the encoders, and at most."""
    encoders: tuple[int, int]
    """Encode actors, fewest and most."""
    encoder_cpus: float
    encoder_gpus: float


def check_encoders(workers: Workers, *, cpus: float, gpus: float, spare_cpus: float = 0) -> tuple[int, int]:
    """(min, max) encode actors on a cluster of this size; `spare_cpus` of its CPUs are not there (see `pools`).

    Raises:
        ConfigError: they leave no CPU for a decode task, or want more GPUs than there are.
    """
    per_encoder, encoder_cpus = _per_encoder(workers, gpus)
    least, most = workers.pool_size(cpus - spare_cpus, gpus if per_encoder else 0)
    if least * encoder_cpus + workers.decode_cpus > cpus:
        fitting = int((cpus - workers.decode_cpus) / encoder_cpus) if encoder_cpus else 0
        raise ConfigError(
            f"--encoders {workers.encoders} of {encoder_cpus:g} CPUs each (--threads-per-encoder) leave no room for a "
            f"decode task of --decode-cpus {workers.decode_cpus:g}: there are {cpus - spare_cpus:g} CPUs, and nothing "
            f"would ever be produced. At most {fitting} encoders fit"
        )
    if least * per_encoder > gpus:
        raise ConfigError(
            f"--encoders {workers.encoders} of --gpus-per-encoder {per_encoder:g} do not fit on the {gpus:g} GPUs "
            "that there are"
        )
    return least, most


def _per_encoder(workers: Workers, gpus: float) -> tuple[float, float]:
    """GPUs and CPUs that an encode actor reserves."""
    on_gpus = workers.gpus_per_encoder if workers.gpus_per_encoder is not None else float(gpus > 0)
    return on_gpus, 0.0 if on_gpus else float(workers.threads_per_encoder)


def writable(output: Storage) -> None:
    """Make the folder of a local output.

    Raises:
        ConfigError: it cannot be made.
    """
    if "://" not in output.uri:
        try:
            Path(output.uri).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {output.uri} is not a folder and cannot be made: {error.strerror}") from error


def pools(
    workers: Workers,
    chunk_bytes: int,
    *,
    cpus: float,
    gpus: float,
    object_store: float,
    memory: float = math.inf,
    overlap_bytes: int = 0,
    largest_node: float = 0,
    spare_cpus: float = 0,
) -> Pools:
    """Size the pools, refusing what would stand still in silence.

    `spare_cpus` of the CPUs are not there: they let an encoder stand on every core, and the decoding beside. Where
    there are few encoders, decode tasks must not fill them, but for one that goes on while Ray Data looks for the next
    (2 cores, one encoder: with two tasks 5 % of the cores' time is idle when decoding is the bottleneck, with three
    1 %; four slow the encoder when the load is balanced, to 0.81 of the ideal overlap, where fewer give 0.83 to 0.90).

    Encoders on CPUs leave room for decode even when the largest node is lost (`largest_node` CPUs, 0 if there is only
    one): an actor keeps its CPU while it waits for frames that only a decode task could make again (seen: two encoders
    on the two CPUs that were left, for ever).

    `overlap_bytes` is what a decode task holds where clips overlap; `memory` is what Ray has for tasks, in bytes.

    Raises:
        ConfigError: the encoders leave no CPU for a decode task, want more GPUs than there are, the object store cannot
            hold the chunks in flight, or memory the clips that overlap.
    """
    per_encoder, encoder_cpus = _per_encoder(workers, gpus)
    least, most = check_encoders(workers, cpus=cpus, gpus=gpus, spare_cpus=spare_cpus)
    if BLOCKS_IN_FLIGHT * chunk_bytes > object_store / 2:
        raise ConfigError(
            f"the largest chunk is {chunk_bytes / 1e6:.0f} MB and Ray's object store {object_store / 1e6:.0f} MB. Half "
            f"of that must hold {BLOCKS_IN_FLIGHT} chunks. Lower --chunk-windows or raise --object-store-gb"
        )
    if encoder_cpus:
        most = max(least, min(most, int((cpus - largest_node - workers.decode_cpus) / encoder_cpus)))
    most_decoders = max(2, 1 + int((cpus - spare_cpus - encoder_cpus) / workers.decode_cpus))
    if most_decoders * overlap_bytes > memory:
        raise ConfigError(
            f"clips that overlap (--every) take up to {overlap_bytes / 1e6:.0f} MB in each of {most_decoders} decode "
            f"tasks, and there are {memory / 1e6:.0f} MB of memory for tasks. Raise --every to a multiple of the step "
            "between frames or beyond, or raise --decode-cpus"
        )
    beside_all = max(1, int((cpus - most * encoder_cpus) / workers.decode_cpus))
    waiting = max(2, int(cpus) // 2)
    return Pools(
        readers=waiting,
        stagers=waiting,
        decode_cpus=workers.decode_cpus,
        decoders=(min(beside_all, most_decoders), most_decoders),
        encoders=(least, max(most, least)),
        encoder_cpus=encoder_cpus,
        encoder_gpus=per_encoder,
    )
