"""Find the latents that are furthest from the rest, by the statistics of their rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from latentmill.statistics import Statistics, matrix, tables

if TYPE_CHECKING:
    from latentmill.dataset import LatentDataset

Floats = npt.NDArray[np.float64]


class Outlier(NamedTuple):
    """A row whose latent is far from the rest."""

    id: str
    key: str
    distance: float
    """0 for a row like all others; see `outliers`."""
    why: str
    """The channel that is furthest out, in words."""


def outliers(dataset: LatentDataset, statistics: Statistics, count: int) -> list[Outlier]:
    """Return the rows that are furthest out, the furthest first.

    The distance of a row is the largest, over its channels, of |mean - m| / s and |log2(std / s)|, where m and s are
    the pooled mean and std of the channel. A latent of zeros and a latent times ten are both far out.
    """
    pooled = statistics.whole
    parts = [
        _distances(matrix(table["latent_mean"]), matrix(table["latent_std"]), pooled.mean, pooled.std).max(1)
        for _, table in tables(dataset)
    ]
    distances = np.concatenate(parts)
    chosen = np.argsort(-distances, kind="stable")[:count]
    facts = dataset.select(["key", "latent_mean", "latent_std"]).facts(chosen.tolist())
    found = []
    for i, (id_, key, mean, std) in enumerate(zip(*facts.values(), strict=True)):
        row = _distances(np.array([mean]), np.array([std]), pooled.mean, pooled.std)[0]
        kind, channel = divmod(int(row.argmax()), len(mean))
        name, value, usual = ("std", std, pooled.std) if kind else ("mean", mean, pooled.mean)
        why = f"the {name} of channel {channel} is {value[channel]:.3g}, that of all rows {usual[channel]:.3g}"
        found.append(Outlier(id_, key, float(distances[chosen[i]]), why))
    return found


def _distances(means: Floats, stds: Floats, mean: Floats, std: Floats) -> Floats:
    """Return [rows, 2C]: of each channel the distance of its mean, then of each that of its std."""
    scale = np.maximum(std, 1e-12)
    return np.concatenate([np.abs(means - mean) / scale, np.abs(np.log2(np.maximum(stds, 1e-12) / scale))], 1)
