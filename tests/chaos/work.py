"""What a job is to the chaos: how it is started, what it makes, and what must hold of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.laws import Files, Findings, Verdicts, check
from tests.chaos.shards import make_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of job."""

    runner: str
    """The module that runs it as a process of its own."""
    folder: str
    """Where it puts what it makes, below the output."""
    writes: tuple[str, ...]
    """What the paths of the files begin with that it must be able to write; the last is of those that it makes."""
    rate: str
    """What its progress line shows as soon as it works."""
    most_new: int
    """A kill comes after at most so many new files."""
    make: Callable[[Path, int], tuple[dict[str, Any], Files]]
    """Make in a folder, from a seed, what the job needs: the settings of the runner, and what an output holds before
    the first run, by path."""
    check: Callable[[Files, Files, Verdicts, list[str]], Findings]
    """Hold the files of an output against those of the undisturbed run: (files, expected, what poison is to cost,
    every path of the output)."""


def _source(folder: Path, seed: int) -> tuple[dict[str, Any], Files]:
    return {"source": make_source(folder / "source", seed)}, {}


ENCODE = Work(
    runner="tests.chaos.runner",
    folder="data/",
    writes=("_staging/", "data/"),
    rate="clips/s",
    most_new=40,
    make=_source,
    check=check,
)
"""`latentmill encode`."""
