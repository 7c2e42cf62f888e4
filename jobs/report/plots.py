"""Draw the figures of the report as SVG that takes the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from latentmill.statistics.normalisation import EXPECTED_STD
from latentmill.statistics.pool import Statistics

INK = "#010203"
"""Stands for the colour of the page's text: it becomes `currentColor`."""
BLUE, ORANGE = "#3b82c4", "#d9822b"
"""Readable on white and on black."""

Floats = npt.NDArray[np.float64]

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, and in the font of the page
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick")},
    **{f"axes.{name}": INK for name in ("edgecolor", "labelcolor")},
}


class Plot(NamedTuple):
    """One figure with its title."""

    title: str
    svg: str


def distributions(facts: dict[str, list[Any]], sources: Sequence[dict[str, Any]]) -> list[Plot]:
    """Draw how clips and their sources are distributed.

    Args:
        facts: columns of rows: `seconds`, `longest_hold_sec`, `num_duplicates`, `num_frames`, `caption`.
        sources: `source_json` of the same rows, parsed.
    """
    sizes = Counter(f"{one['display_width']}x{one['display_height']}" for one in sources)
    aspects = np.array([one["display_width"] / one["display_height"] for one in sources])
    words = np.array([len(caption.split()) for caption in facts["caption"] if caption])
    without = sum(not caption for caption in facts["caption"])
    repeated = np.array(facts["num_duplicates"]) / np.array(facts["num_frames"])
    rates = np.array([n / s for n, s in zip(facts["num_frames"], facts["seconds"], strict=True) if n > 1 and s])
    return [
        _histogram("Duration of a clip", np.array(facts["seconds"]), "seconds"),
        _bars("Size of the source", sizes),
        _histogram("Aspect of the source", aspects, "width / height"),
        _histogram("Frame rate of a clip", rates, "frames per second"),
        _histogram("Longest hold of one source frame", np.array(facts["longest_hold_sec"]), "seconds"),
        _histogram("Frames that repeat the one before", 100 * repeated, "% of a clip's frames"),
        _histogram(f"Length of a caption ({without:,} have none)", words, "words"),
        _bars("Codec of the source", Counter(one["codec"] for one in sources)),
    ]


def latents(found: Statistics, stds: Floats, largest: Floats) -> list[Plot]:
    """Draw the statistics of the latents.

    Args:
        found: pooled over all of them.
        stds: of each clip over all channels.
        largest: magnitude of each clip.
    """

    def channels(name: str) -> Callable[[Axes], None]:
        def draw(axes: Axes) -> None:
            numbers = np.arange(len(found.whole.mean))
            if name == "std":
                axes.axhspan(*EXPECTED_STD, color=BLUE, alpha=0.15, linewidth=0)
            for part, colour, label in ((found.first, ORANGE, "first frame"), (found.rest, BLUE, "later frames")):
                if part:
                    axes.plot(numbers, getattr(part, name), "o", color=colour, markersize=4, label=label)
            axes.axhline(1.0 if name == "std" else 0.0, color=INK, linewidth=0.5)
            axes.set_xlabel("channel")
            axes.legend(frameon=False, loc="best", fontsize=8)

        return draw

    return [
        _plot("Standard deviation of each channel", channels("std")),
        _plot("Mean of each channel", channels("mean")),
        _histogram("Standard deviation of a clip", stds, "over all channels"),
        _histogram("Largest magnitude of a clip", largest, "as stored"),
    ]


def _histogram(title: str, values: npt.NDArray[Any], unit: str) -> Plot:
    def draw(axes: Axes) -> None:
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
        if high - low <= 1e-6 * max(abs(low), abs(high)):  # equal but for rounding: one bar, and room beside it
            margin = max(abs(low) / 2, 0.5)
            low, high = low - margin, high + margin
        axes.hist(values, bins=30, range=(low, high), color=BLUE)
        axes.set_xlabel(unit)
        axes.set_ylabel("clips")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))

    return _plot(title, draw)


def _bars(title: str, counts: Counter[str], most: int = 8) -> Plot:
    def draw(axes: Axes) -> None:
        shown = counts.most_common(most)
        if (rest := counts.total() - sum(count for _, count in shown)) > 0:
            shown.append(("others", rest))
        names, numbers = [name for name, _ in shown], [count for _, count in shown]
        axes.barh(range(len(shown)), numbers, color=BLUE, height=0.7)
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(max(len(shown), 4) - 0.4, -0.6)
        axes.set_xlabel("clips")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))

    return _plot(title, draw)


def _plot(title: str, draw: Callable[[Axes], None]) -> Plot:
    with mpl.rc_context(STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(4.0, 2.5), layout="constrained")
        axes = figure.add_subplot()
        axes.locator_params(axis="x", nbins=6)
        draw(axes)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.S).replace(INK, "currentColor")
    return Plot(title, re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', svg, count=1))
