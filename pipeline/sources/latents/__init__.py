"""Latents that were made elsewhere, as a source: list them as shards, and read a shard.

    fastvideo   FastVideo's Parquet files: raw latents, in `vae_latent_bytes`, `_shape`, `_dtype`
    pt          torch files of one clip each: a tensor, or a dict with one

A row of a Parquet file, or a file, counts as a video of one clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from pipeline.errors import NotFoundError, StorageError
from pipeline.records import Rejection
from pipeline.shards import Shard
from pipeline.storage import Storage

Origin = Literal["fastvideo", "pt"]

FPS = (0.001, 1000.0)
"""The lowest and the highest rate that a clip may state."""


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


class BadRowError(ValueError):
    """What a row states cannot be so."""


def taken(key: str, uri: str, read: Callable[[], ForeignLatent]) -> ForeignLatent | Rejection:
    """Return what `read` gives, or why a clip cannot be taken.

    Whatever strange bytes raise is caught, since one clip must not end an import: an unpickler gives any class of
    error. A fault of the storage is not the clip's.
    """
    try:
        found = read()
        _check_text("name", found.key)
        _check_text("caption", found.caption)
        if found.values.ndim != 4 or 0 in found.values.shape:
            raise BadRowError(f"a latent must be [C, T, H, W], got {list(found.values.shape)}")
        return found
    except NotFoundError as error:
        reason, message = "not_found", str(error)
    except StorageError:
        raise
    except BadRowError as error:
        reason, message = "bad_row", str(error)
    except Exception as error:
        reason, message = "unreadable", f"{type(error).__name__}: {error}"
    return Rejection(reason=reason, stage="read", message=_shown(message), key=_shown(key), uri=_shown(uri))


def fps_of(value: object) -> str | None:
    """Return a stated frame rate as an integer or "p/q"; None for null, NaN and 0, which state none.

    Raises:
        BadRowError: it is no number, or outside FPS.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)) or value == 0:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not FPS[0] <= value <= FPS[1]:
        raise BadRowError(f"fps must be a number from {FPS[0]} to {FPS[1]:g}, got {str(value)[:40]!r}")
    return str(Fraction(value).limit_denominator(1001))


def _check_text(name: str, text: object) -> None:
    if text is None:
        return
    if not isinstance(text, str):
        raise BadRowError(f"the {name} must be text, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(f"the {name} is not UTF-8: {error.reason}") from None


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
