"""Outputs of the VAEs that trainers are made for, with embeddings of their captions: made-up numbers in real files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

import latentmill
from pipeline.export.families import COGVIDEOX, LTX_2, WAN_21, WAN_22, Family
from pipeline.output.commit import commit, seal
from pipeline.output.layout import list_shards, text_path
from pipeline.output.parts import stage
from pipeline.output.spec_file import write_spec
from pipeline.records import CompleteShard, Latent, clip_id
from pipeline.settings.spec import LatentRule, Spec
from pipeline.stages.encode_chunk import to_bytes
from pipeline.storage import Storage
from pipeline.text import shard_file
from pipeline.text import spec as text_spec
from pipeline.text.records import Caption, Embedding
from pipeline.text.spec import TextSpec
from tests.reader.made import shard_names
from tests.small import CLIP, LATENT, latent
from vae.info import VAEInfo

MEAN = (0.25, -0.5, 1.5, 0.125)
STD = (2.0, 0.5, 1.25, 3.0)
"""Of the channels in turn."""

WIDTH = 4
"""Of an embedding."""


def vae_of(family: Family, **changes: Any) -> dict[str, Any]:
    """The VAE of a Spec, as the adapter for diffusers writes it."""
    mean, std = (tuple(values[i % 4] for i in range(family.channels)) for values in (MEAN, STD))
    normalised = family in (WAN_21, WAN_22, LTX_2)
    factor = {"HunyuanVideo": 0.476986, "CogVideoX": 0.7}.get(family.title, 1.0)
    config = {"latents_mean": list(mean), "latents_std": list(std)} if normalised else {"scaling_factor": factor}
    info = VAEInfo(
        name=family.name,
        config=config,
        weights_sha256="0" * 64,
        in_channels=3,
        latent_channels=family.channels,
        time_compression=family.compression[0],
        space_compression=family.compression[1],
        scale=tuple(1 / value for value in std) if normalised else factor,
        shift=mean if normalised else 0.0,
        schedule="whole",
        windowed=False,
        only_accepted_lengths=True,
    )
    return info.to_json() | changes


def write_family(
    where: Path,
    vae: dict[str, Any],
    shapes: Sequence[tuple[int, int, int]] = ((2, 2, 4),),
    rule: LatentRule = LATENT,
    clips: int = 4,
    fps: str = "8",
    captions: Sequence[str | None] = (),
) -> Spec:
    """Commit two shards of `clips` rows each, with latents of these (T', H', W') in turn. Some captions are equal."""
    output = Storage(str(where))
    made = Spec(vae=vae, clip=replace(CLIP, fps=fps), latent=rule)
    write_spec(output, made)
    for shard in shard_names(2):
        done = {}
        for clip in range(clips):
            stage(_latent(shard, clip, made, shapes[clip % len(shapes)], captions), output)
            done[clip, 0] = 1
        whole = CompleteShard(name=shard, planned=clips, latents=done, rejections={})
        assert not commit(output, made.to_json(), whole).missing
    seal(output, shard_names(2))
    return made


def _latent(shard: str, clip: int, made: Spec, shape: tuple[int, int, int], captions: Sequence[str | None]) -> Latent:
    vae, (frames, height, width) = made.vae, shape
    channels = vae["latent_channels"] * (2 if made.latent.posterior == "moments" else 1)
    rng = np.random.default_rng([int(shard[:6]), clip])
    values = torch.from_numpy(rng.normal(size=(channels, *shape)).astype(np.float32))
    base = latent(clip, 0)
    facts = replace(
        base.facts,
        id=clip_id(shard, clip, 0),
        key=f"{shard[:6]}/{clip}",
        caption=captions[clip % len(captions)] if captions else f"caption {clip // 2}",
        num_frames=1 + (frames - 1) * vae["time_compression"],
        height=height * vae["space_compression"],
        width=width * vae["space_compression"],
        fps=None if made.clip.fps == "native" else made.clip.fps,
    )
    return replace(
        base,
        id=replace(base.id, shard=shard),
        payload=to_bytes(values, made.latent.store_dtype),
        shape=tuple(values.shape),
        dtype=made.latent.store_dtype,
        facts=facts,
    )


def write_text(where: Path, name: str = "t5", max_length: int = 6, dtype: str = "bfloat16", **changes: Any) -> None:
    """Write the text of every shard: an embedding has one token a character of the caption, at most `max_length`."""
    output = Storage(str(where))
    fields: dict[str, Any] = {
        "encoder": {"class": "T5EncoderModel"},
        "tokenizer_sha256": "0" * 64,
        "max_length": max_length,
        "dtype": dtype,
        "layer": "last",
        "caption_column": "caption",
        "drop_empty": False,
        "batch_size": 1,
    }
    spec = TextSpec(**fields | changes)
    text_spec.write(output, name, spec)
    captions_of = {"empty": [Caption(id="", text="caption 0")]}
    for shard, _ in list_shards(output, "data/"):
        rows = pq.read_table(where / f"data/{shard}.parquet", columns=["id", "caption"]).to_pylist()
        captions_of[shard] = [Caption(id=row["id"], text=row["caption"]) for row in rows]
    for shard, captions in captions_of.items():
        with (where / "text.tmp").open("w+b") as sink:
            shard_file.write(sink, spec.to_json(), shard, captions, lambda text: _embedding(text, spec))
        output.put(text_path(name, shard), where / "text.tmp")
    (where / "text.tmp").unlink()


def _embedding(text: str | None, spec: TextSpec) -> Embedding | None:
    if spec.drop_empty and not (text or "").strip():
        return None
    number = (text or "").rpartition(" ")[2]
    length = min(spec.max_length, 1 + (int(number) if number.isdecimal() else len(text or "")))
    rng = np.random.default_rng(len(text or "") + length)
    values = torch.zeros(spec.max_length if spec.pad_tokens else length, WIDTH)
    values[:length] = torch.from_numpy(rng.normal(size=(length, WIDTH)).astype(np.float32))
    payload, shape = bytes(to_bytes(values, spec.dtype)), (values.shape[0], WIDTH)
    return Embedding(payload=payload, shape=shape, dtype=spec.dtype, length=length, truncated=False)


def embedding_of(caption: str | None, max_length: int = 6, dtype: str = "bfloat16") -> torch.Tensor:
    """The embedding [S, E] that `write_text` gives a caption."""
    length = min(max_length, 1 + int((caption or "0").rpartition(" ")[2]))
    rng = np.random.default_rng(len(caption or "") + length)
    return torch.from_numpy(rng.normal(size=(length, WIDTH)).astype(np.float32)).to(getattr(torch, dtype))


def rows_of(where: Path) -> dict[str, dict[str, Any]]:
    """The rows as the reader gives them, by id."""
    latents = latentmill.open(where)
    rows = (latents[i] for i in range(len(latents)))
    return {row["id"]: dict(row, latent=row["latent"].clone()) for row in rows}


FAMILIES = {"automodel": WAN_21, "ltx": LTX_2, "fastvideo": WAN_21, "musubi": WAN_21, "cogvideo": COGVIDEOX}
"""The VAE with which each trainer is tested."""
ROOM = 128
"""Of the test's embeddings where the trainer asks for a multiple of it."""
