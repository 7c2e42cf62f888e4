"""Torch files of one clip each as a source of latents: a tensor [C, T', H', W'], or a dict that has one.

Files are loaded with weights_only=True, so code in them never runs.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import Any

import torch

from latentmill.format import DTYPES
from pipeline.errors import NotFoundError
from pipeline.records import Rejection
from pipeline.shards import FileGroup, ListedVideo, Shard
from pipeline.sources.folders import files_shard
from pipeline.sources.latents import ForeignLatent, ForeignSource
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
        uri = folder.address(file.path)
        try:
            yield _latent(file.path, uri, folder.read(file.path, etag=file.etag), key)
        except NotFoundError as error:
            yield Rejection(reason="not_found", stage="read", message=str(error), key=file.path, uri=uri)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
            message = f"{type(error).__name__}: {error}"
            yield Rejection(reason="unreadable", stage="read", message=message, key=file.path, uri=uri)


def _latent(path: str, uri: str, content: bytes, key: str) -> ForeignLatent:
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
    if found.ndim == 5 and len(found) == 1:
        found = found[0]
    if found.ndim != 4:
        raise ValueError(f"a latent must be [C, T, H, W], got {list(found.shape)}")
    fps = facts.get("fps")
    return ForeignLatent(
        key=path,
        uri=uri,
        values=found.float().numpy(),
        dtype=dtype,
        caption=next((facts[name] for name in CAPTIONS if isinstance(facts.get(name), str)), None),
        fps=str(Fraction(fps).limit_denominator(1001)) if isinstance(fps, int | float) and fps > 0 else None,
        extra=plain({name: value for name, value in facts.items() if isinstance(value, str | int | float | bool)}),
    )


SOURCE = ForeignSource(list=list_shards, read=read_shard)
