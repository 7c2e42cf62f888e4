"""Latents that were made elsewhere, as a source: list them as shards, and read a shard.

    fastvideo   FastVideo's Parquet files: raw latents, in `vae_latent_bytes`, `_shape`, `_dtype`
    pt          torch files of one clip each: a tensor, or a dict with one

A row of a Parquet file, or a file, counts as a video of one clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline.records import Rejection
from pipeline.shards import Shard
from pipeline.storage import Storage

Origin = Literal["fastvideo", "pt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignLatent:
    """One latent as somebody else stored it."""

    key: str
    uri: str
    values: np.ndarray
    """float32 [C, T', H', W']: every stored dtype fits into it."""
    dtype: str
    """The stored dtype, a name in torch."""
    caption: str | None = None
    fps: str | None = None
    """Frames per second of the encoded frames, an integer or "p/q"; None: it is not stored."""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSource:
    """How latents of one origin are listed and read."""

    list: Callable[[Storage, int, frozenset[str]], Iterator[Shard]]
    """(place, rows or files in a shard, addresses of the files that are in the plan): shards of all other files."""
    read: Callable[[Shard, str], Iterator[ForeignLatent | Rejection]]
    """(shard, key): the clips of a shard in order, or why one cannot be read. `key` names the tensor in a dict."""
