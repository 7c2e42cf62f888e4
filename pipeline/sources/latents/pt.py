"""Torch files of one clip each as a source of latents: a tensor [C, T', H', W'], or a dict that has one.

Files are loaded with weights_only=True, so code in them never runs.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch

from latentmill.format import DTYPES
from pipeline.records import Rejection
from pipeline.shards import FileGroup, ListedVideo, Shard
from pipeline.sources.folders import files_shard
from pipeline.sources.latents import ForeignLatent, ForeignSource, fps_of, taken
from pipeline.sources.samples import plain
from pipeline.storage import Storage

SUFFIXES = (".pt", ".pth", ".meta")
KEYS = ("latent", "latents", "video_latents")
"""The names of a latent in the files that people have: ours, those of LTX trainers, of NeMo Automodel."""
CAPTIONS = ("caption", "prompt")


def list_shards(place: Storage, shard_size: int, planned: frozenset[str]) -> Iterator[Shard]:
    """Yield groups of the torch files below a folder, sorted by path."""
    files = (
        ListedVideo(entry.path, entry.size, entry.etag, {})
        for entry in place.list()
        if entry.path.endswith(SUFFIXES) and place.address(entry.path) not in planned
    )
    while group := list(islice(files, shard_size)):
        yield files_shard(place.uri, group)


def read_shard(shard: Shard, key: str) -> Iterator[ForeignLatent | Rejection]:
    """Yield the clip of each file."""
    group, folder = shard.members, Storage(shard.uri)
    assert isinstance(group, FileGroup)
    for file in group.videos:
        yield taken(file.path, folder.address(file.path), partial(_latent, folder, file, key))


def _latent(folder: Storage, file: ListedVideo, key: str) -> ForeignLatent:
    content = folder.read(file.path, etag=file.etag)
    found: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    facts: dict[str, Any] = found if isinstance(found, dict) else {}
    names = [key] if key else [name for name in KEYS if name in facts]
    if facts:
        if not names or names[0] not in facts:
            raise ValueError(f"a dict with {', '.join(map(str, facts))}, and none is {key or ' or '.join(KEYS)}")
        found = facts[names[0]]
    if not isinstance(found, torch.Tensor) or (dtype := str(found.dtype).removeprefix("torch.")) not in DTYPES:
        raise ValueError(
            f"the latent must be a tensor of {', '.join(DTYPES)}, got {getattr(found, 'dtype', type(found))}"
        )
    if found.layout != torch.strided or found.device.type != "cpu" or found.nbytes > len(content):
        # The last: a tensor that repeats few stored values, so that a small file would fill the memory.
        raise ValueError(f"the latent must be a dense tensor whose values are all stored, got {found.layout}")
    if found.ndim == 5 and len(found) == 1:
        found = found[0]
    if found.ndim != 4:
        raise ValueError(f"a latent must be [C, T, H, W], got {list(found.shape)}")
    return ForeignLatent(
        key=file.path,
        uri=folder.address(file.path),
        values=found.detach().float().numpy(),
        dtype=dtype,
        caption=next((facts[name] for name in CAPTIONS if isinstance(facts.get(name), str)), None),
        fps=fps_of(facts.get("fps")),
        extra=plain({name: value for name, value in facts.items() if _is_plain(name, value)}),
    )


def _is_plain(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, str | int | float | bool)


SOURCE = ForeignSource(list=list_shards, read=read_shard)
