"""Find the latents that are furthest from the rest, by the statistics of their rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latentmill.rows import Rows
from latentmill.statistics.pool import matrix, tables

Floats = npt.NDArray[np.float64]


MEDIAN_ROWS = 1 << 16
"""Most rows of which the medians are taken."""


class Outlier(NamedTuple):
    """A row whose latent is far from the rest."""

    position: int
    """Its place in the rows."""
    id: str
    key: str
    distance: float
    """0 for a row like all others; see `outliers`."""
    why: str
    """The channel that is furthest out, in words."""


def outliers(rows: Rows, count: int) -> list[Outlier]:
    """Return the rows that are furthest out, the furthest first. The columns STATISTICS must be opened.

    The distance of a row is the largest, over its channels, of |mean - m| / s and |log2(std / s)|, where m and s are
    the medians over the rows of the channel's mean and std. A latent of zeros and a latent times ten are both far out,
    and do not move the medians.
    """
    usual = _usual(rows)
    distances = np.concatenate([_distances(*_columns(table), *usual).max(1) for _, table in tables(rows)])
    chosen = np.argsort(-distances, kind="stable")[:count]
    facts = rows.select(["key", "latent_mean", "latent_std"]).facts(chosen.tolist())
    found = []
    for i, id_, key, *row in zip(chosen, *facts.values(), strict=True):
        mean, std = (np.array([values]) for values in row)
        kind, channel = divmod(int(_distances(mean, std, *usual).argmax()), len(usual[0]))
        value, most = row[kind][channel], usual[kind][channel]
        why = f"the {('mean', 'std')[kind]} of channel {channel} is {value:.3g}, that of most rows {most:.3g}"
        found.append(Outlier(int(i), id_, key, float(distances[i]), why))
    return found


def _usual(rows: Rows) -> tuple[Floats, Floats]:
    """Return the medians of mean and std of each channel, [C] each, over evenly chosen rows."""
    step = -(-len(rows) // MEDIAN_ROWS)
    chosen = [_columns(table[::step] if step > 1 else table) for _, table in tables(rows)]
    mean, std = (np.median(np.concatenate(parts), 0) for parts in zip(*chosen, strict=True))
    return mean, np.maximum(std, 1e-12)


def _columns(table: pa.Table) -> tuple[Floats, Floats]:
    return matrix(table["latent_mean"]), matrix(table["latent_std"])


def _distances(means: Floats, stds: Floats, mean: Floats, std: Floats) -> Floats:
    """Return [rows, 2C]: of each channel the distance of its mean, then of each that of its std."""
    return np.concatenate([np.abs(means - mean) / std, np.abs(np.log2(np.maximum(stds, 1e-12) / std))], 1)
