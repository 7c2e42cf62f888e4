"""One clip as a trainer takes it, and how it is read from an output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from latentmill.dataset import LatentDataset
from latentmill.tensors import converted
from pipeline.storage.parallel import read_ahead

AHEAD = 4
"""Clips that are read while others are written."""

COLUMNS = ("id", "key", "caption", "num_frames", "height", "width", "fps", "start_sec", "end_sec")
"""What a row is made of, beside the latent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What becomes of a stored latent."""

    is_raw: bool = False
    """Give what the VAE gives, z = latent / scale + shift, and not the scaled latent that training sees."""
    draw: Literal["mean", "sample"] = "mean"
    """What becomes of stored moments. A sample is the one that the reader draws in epoch 0 of seed 0."""
    dtype: str | None = None
    """A name in torch; None: as stored."""

    def __call__(self, stored: Tensor, spec: dict[str, Any], id: str) -> Tensor:
        """Return the latent [C, T', H', W']. It is computed in float32 and rounded once."""
        dtype = getattr(torch, self.dtype) if self.dtype else stored.dtype
        if not self.is_raw and spec["latent"]["posterior"] != "moments":
            return stored.to(dtype)
        return converted(stored, spec, self.draw, f"0/0/{id}", is_unscaled=self.is_raw).to(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRow:
    """One clip."""

    id: str
    key: str
    caption: str | None
    latent: Tensor
    """[C, T', H', W']."""
    text: Tensor | None
    """The embedding [S, E]; None without --text."""
    text_length: int
    """How many of its S positions hold tokens; the others are padding."""
    num_frames: int
    height: int
    width: int
    """Of the frames that were encoded, in pixels."""
    fps: float
    """Of those frames. Of consecutive source frames, that of the median distance between them; 1 for a single one."""

    @property
    def prompt(self) -> Tensor:
        """The embedding without its padding, [length, E]."""
        assert self.text is not None
        return self.text[: self.text_length]

    @property
    def padded_prompt(self) -> Tensor:
        """The embedding [S, E] with zeros in place of its padding."""
        assert self.text is not None
        padded = torch.zeros_like(self.text)
        padded[: self.text_length] = self.prompt
        return padded

    @property
    def text_mask(self) -> Tensor:
        """Bool [S]: which positions hold tokens."""
        assert self.text is not None
        return torch.arange(len(self.text)) < self.text_length

    @property
    def facts(self) -> dict[str, Any]:
        """Everything but the tensors."""
        names = ("id", "key", "caption", "num_frames", "height", "width", "fps")
        return {name: getattr(self, name) for name in names}


def read_rows(dataset: LatentDataset, positions: range, conversion: Conversion) -> Iterator[ExportRow]:
    """Yield the rows at these positions in order, and read AHEAD of them.

    Raises:
        DamagedRowError: the bytes of a row are not those that were written.
    """
    if dataset.stored_posterior == "moments":
        dataset = dataset.posterior("moments")
    for sample in read_ahead((partial(dataset.__getitem__, position) for position in positions), AHEAD):
        yield _row(sample.result(), dataset.spec, conversion)


def _row(sample: dict[str, Any], spec: dict[str, Any], conversion: Conversion) -> ExportRow:
    text = sample.get("text")
    return ExportRow(
        id=sample["id"],
        key=sample["key"],
        caption=sample["caption"],
        latent=conversion(sample["latent"], spec, sample["id"]),
        text=text,
        text_length=0 if text is None else int(sample["text_length"]),
        num_frames=sample["num_frames"],
        height=sample["height"],
        width=sample["width"],
        fps=sample["fps"] if sample["fps"] == sample["fps"] else _fps(sample["timestamps_sec"]),
    )


def _fps(timestamps: list[float]) -> float:
    gaps = [after - before for before, after in pairwise(timestamps) if after > before]
    return 1 / median(gaps) if gaps else 1.0
