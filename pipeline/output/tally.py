"""Count what the output holds, from the derived files of the committed shards, for `status` and the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentmill.statistics.pool import Pool, Statistics
from pipeline.decode.too_short import num_fitting
from pipeline.errors import ClipTooShortError
from pipeline.output.captions import Captions, of_index
from pipeline.output.derived import StaleError, from_data, read_derived
from pipeline.output.layout import data_path
from pipeline.storage import Storage
from pipeline.storage.parallel import in_parallel

Target = tuple[int, int | None]
"""What a rejection refuses: (video ordinal, clip index); the index is None for a whole video"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts over committed shards."""

    latents: int
    latent_bytes: int
    rejected: dict[str, int]
    """By reason."""
    too_short: dict[int, int]
    """Clips rejected as too short, by the number of frames that fit, where it is known."""
    captions: Captions = field(default_factory=Captions)
    """Of the latents."""
    statistics: Statistics | None = field(default=None, compare=False)
    """Of all latents; None if there are none, or in an output of format version 1."""

    @property
    def planned(self) -> int:
        """Number of planned clips: each is a latent or a rejection."""
        return self.latents + sum(self.rejected.values())


def tally(output: Storage, shards: Iterable[str], superseded: Mapping[str, set[Target]]) -> Tally:
    """Count the latents and rejections of these committed shards.

    Rejections that a retry replaced are left out, so that each clip counts once.
    """
    latents = latent_bytes = 0
    rejected: Counter[str] = Counter()
    too_short: Counter[int] = Counter()
    pool, captions = Pool(), Captions()
    for index, rejections in in_parallel(lambda shard: standing(output, shard, superseded.get(shard, set())), shards):
        latents += len(index)
        latent_bytes += pc.sum(index["byte_length"]).as_py() or 0
        captions += of_index(index)
        if "latent_mean" in index.column_names:
            pool.add(index)
        rejected.update(rejection["reason"] for rejection in rejections)
        short = [rejection["message"] for rejection in rejections if rejection["reason"] == ClipTooShortError.reason]
        too_short.update(fitting for message in short if (fitting := num_fitting(message)) is not None)
    return Tally(
        latents=latents,
        latent_bytes=latent_bytes,
        rejected=dict(rejected),
        too_short=dict(too_short),
        captions=captions,
        statistics=pool.result(),
    )


def standing(output: Storage, shard: str, superseded: set[Target]) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Return the index of a shard, and its rejections that no retry replaced. Damaged derived files are passed by."""
    try:
        index, rejections = read_derived(output, shard)
    except StaleError:  # just committed, or by a run that was killed right after: the data file is the truth
        index, rejections = from_data(output, shard, output.read(data_path(shard)))
    left = [rejection for rejection in rejections if target(rejection) not in superseded]
    return index, left


def target(rejection: dict[str, Any]) -> Target:
    """Return the target of a rejection.

    The target is a clip if the rejection has a start, or an index other than 0 (one of several clips, now missing).
    Otherwise it is a whole video, or the rest of a tar.
    """
    return rejection["video"], rejection["clip"] if rejection["start"] is not None or rejection["clip"] else None
