"""The Spec: every setting that determines the content of `data/` for given source bytes, with resolved values.

It is stored once as OUTPUT/spec.json and in the footer of every data file. A later run with a different Spec raises
ConfigError, so an output never mixes latents of two kinds. The Spec has no source, workers, threads, deadlines or
addresses.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from latentmill.format import FORMAT_VERSION, READABLE_VERSIONS
from pipeline.errors import ConfigError
from pipeline.records import canonical_json
from pipeline.settings.clip_rule import ClipRule

ABSENT: dict[str, Any] = {"clip.limit_hold": None, "clip.times": "as_stored"}
"""The value of a field that a spec.json lacks: the behaviour of the versions without this field. A Spec with this value
omits the field, so that the Spec of an older output keeps its bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentRule:
    """How a clip becomes a stored latent."""

    schedule: Literal["batched8", "whole"] = "batched8"
    """Frames per forward pass. batched8 equals diffusers: windows of 8 frames (the first takes the remainder), constant
    memory. whole equals SAT: the clip in one pass. The results differ, because GroupNorm runs over time."""
    chunk_windows: int = 32
    """Largest number of windows per chunk. A longer clip is cut on the window grid into several chunks.
    A window has 8 frames, with Wan 4."""
    context: str = "3"
    """Windows before each later chunk that are encoded to fill its caches, then dropped. `exact` never cuts clips.
    Wan is always cut exactly, with the 28 windows that its latents depend on, whatever stands here."""
    posterior: Literal["mean", "sample", "moments"] = "mean"
    """mean: the mean. sample: one seeded sample. moments: mean and log-variance stacked on channels, unscaled."""
    seed: int = 0
    """Seed of `--posterior sample`. The noise of a row depends on the seed and the row id."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type in which the VAE computes. Moments are converted to float32 before they are scaled."""
    store_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of the stored latents."""
    format: Literal["parquet", "npy"] = "parquet"
    """parquet: latents are a column. npy: latents are in one array per shard and shape, which the rows name."""

    def __post_init__(self) -> None:
        if self.chunk_windows < 1:
            raise ConfigError(f"--chunk-windows must be at least 1, got {self.chunk_windows}")
        if self.context != "exact" and not self.context.isdecimal():
            raise ConfigError(f"--context must be a number of windows or `exact`, got {self.context!r}")

    @property
    def context_windows(self) -> int | None:
        """Context windows of a later chunk; None if clips are never cut."""
        return None if self.context == "exact" else int(self.context)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """The settings that determine the latents, as described in the module docstring. `diff` compares two Specs."""

    vae: dict[str, Any]
    """Class, config, sha256 of the weights, compression, scaling: `VAEInfo` as a dict. Never a path."""
    clip: ClipRule
    latent: LatentRule
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the canonical JSON: equal Specs give equal text."""
        fields = asdict(self)
        for name, value in ABSENT.items():
            part, field = name.split(".")
            if fields[part][field] == value:
                del fields[part][field]
        return canonical_json(fields)

    @staticmethod
    def from_json(text: str | bytes) -> Spec:
        """Parse the text of `to_json`. Raises ConfigError for a format version that this code does not read."""
        fields = json.loads(text)
        if fields["format_version"] not in READABLE_VERSIONS:
            known = " or ".join(map(str, READABLE_VERSIONS))
            raise ConfigError(f"format_version must be {known}, got {fields['format_version']} in spec.json")
        for name, value in ABSENT.items():
            part, field = name.split(".")
            fields[part].setdefault(field, value)
        clip: dict[str, Any] = fields.pop("clip")
        clip = {name: tuple(value) if isinstance(value, list) else value for name, value in clip.items()}
        return Spec(clip=ClipRule(**clip), latent=LatentRule(**fields.pop("latent")), **fields)

    @property
    def digest(self) -> str:
        """The sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def other_encoder(ours: str, theirs: str) -> str:
    """Return why two values of `vae.schedule` cannot be mixed if the encoder is another one; else nothing."""
    if (ours, theirs) != ("causal4", "whole"):
        return ""
    return (
        "an earlier version encoded this VAE with diffusers' code; latentmill's own encoder gives other last bits, so "
        "the two are not mixed: continue that output with the earlier version, or use another --output"
    )


class Difference(NamedTuple):
    """A field that differs between two Specs."""

    field: str
    """Its path: `clip.num_frames`."""
    ours: Any
    """Its value, or `absent`."""
    theirs: Any


def diff(ours: str, theirs: str) -> list[Difference]:
    """The fields that differ between two Specs in JSON, sorted by path."""
    left, right = ABSENT | _flat(json.loads(ours)), ABSENT | _flat(json.loads(theirs))
    names = [name for name in sorted(left.keys() | right.keys()) if left.get(name) != right.get(name)]
    return [Difference(name, left.get(name, "absent"), right.get(name, "absent")) for name in names]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves by dotted path; a list is a leaf."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}.{name}" if prefix else name)
    return flat
