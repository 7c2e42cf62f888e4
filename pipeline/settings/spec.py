"""The Spec: all that decides what stands in `data/` for given source bytes, every value resolved.

Stored once as OUTPUT/spec.json and in the footer of every data file. A later run whose Spec differs is refused, so one
output never holds latents of two kinds. Not in it: source, workers, threads, deadlines, addresses.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ConfigError
from pipeline.records import canonical_json
from pipeline.settings.clip_rule import ClipRule

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    pass

FORMAT_VERSION = 1
"""Raised by any change that alters bytes under `data/` for the same source."""

PATH = "spec.json"
"""Where the Spec stands under the output."""


ABSENT: dict[str, Any] = {"clip.limit_hold": None}
"""What it means that a spec.json lacks a field: how the program behaved before there was one. A Spec of this value
leaves the field out, so that an older output keeps its Spec to the byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentRule:
    """How a clip becomes a stored latent."""

    schedule: Literal["batched8", "whole"] = "batched8"
    """Frames per forward: batched8 equals diffusers (8 frames, the first takes the remainder; constant memory), whole
    equals SAT (the clip in one pass). They differ, because GroupNorm runs over time."""
    chunk_windows: int = 32
    """Windows per chunk: a longer clip is cut on the window grid and travels as several chunks."""
    context: str = "3"
    """Windows encoded before each later chunk to warm its caches, and dropped; `exact` never cuts."""
    posterior: Literal["mean", "sample", "moments"] = "mean"
    """mean; one seeded sample; or both moments (mean and log-variance stacked on channels, unscaled)."""
    seed: int = 0
    """Of `--posterior sample`: every row has noise of its own, fixed by seed and row id."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Compute in this type. Moments become float32 before they are scaled."""
    store_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Store in this type."""
    format: Literal["parquet", "npy"] = "parquet"
    """parquet: the latent is a column. npy: one array per shard and shape beside it, named in the rows."""

    def __post_init__(self) -> None:
        if self.chunk_windows < 1:
            raise ConfigError(f"--chunk-windows must be at least 1, got {self.chunk_windows}")
        if self.context != "exact" and not self.context.isdecimal():
            raise ConfigError(f"--context must be a number of windows or `exact`, got {self.context!r}")

    @property
    def context_windows(self) -> int | None:
        """Context windows of a later chunk; None: never cut."""
        return None if self.context == "exact" else int(self.context)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """See the module. Build it with the VAE's facts, compare it with `diff`."""

    vae: dict[str, Any]
    """Class, config, sha256 of the weights, compression, scaling: `VAEInfo` as a dict. Never a path."""
    clip: ClipRule
    latent: LatentRule
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Canonical JSON, one text per Spec."""
        fields = asdict(self)
        for name, value in ABSENT.items():
            part, field = name.split(".")
            if fields[part][field] == value:
                del fields[part][field]
        return canonical_json(fields)

    @staticmethod
    def from_json(text: str | bytes) -> Spec:
        """Inverse of to_json. Raises ConfigError for a format version that this code does not read."""
        fields = json.loads(text)
        if fields["format_version"] != FORMAT_VERSION:
            raise ConfigError(f"format_version must be {FORMAT_VERSION}, got {fields['format_version']} in {PATH}")
        for name, value in ABSENT.items():
            part, field = name.split(".")
            fields[part].setdefault(field, value)
        clip: dict[str, Any] = fields.pop("clip")
        clip = {name: tuple(value) if isinstance(value, list) else value for name, value in clip.items()}
        return Spec(clip=ClipRule(**clip), latent=LatentRule(**fields.pop("latent")), **fields)

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def diff(ours: str, theirs: str) -> list[str]:
    """One line for each field that differs between two Specs in JSON: `clip.num_frames: 49 here, 17 there`."""
    here, there = ABSENT | _flat(json.loads(ours)), ABSENT | _flat(json.loads(theirs))
    names = [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
    return [f"{name}: {here.get(name, 'absent')} here, {there.get(name, 'absent')} there" for name in names]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path; a list is a leaf."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}.{name}" if prefix else name)
    return flat
