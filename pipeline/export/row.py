"""One clip as a trainer takes it, and how it is read from an output."""

from __future__ import annotations

import math
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
    """The embedding [S, E] of the tokens of its caption, without padding; None without --text."""
    text_room: int
    """The most tokens that an embedding of this text may have: trainers that stack embeddings get them padded to it."""
    num_frames: int
    height: int
    width: int
    """Of the frames that were encoded, in pixels."""
    fps: float
    """Of those frames. Of consecutive source frames, that of the median distance between them; 1 for a single one."""

    def padded_text(self, *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Return the embedding [text_room, E] with zeros for padding, and bool [text_room]: where its tokens are."""
        assert self.text is not None
        padded = self.text.new_zeros((self.text_room, self.text.shape[1]))
        mask = torch.zeros(self.text_room, dtype=torch.bool)
        place = slice(self.text_room - len(self.text), None) if left else slice(len(self.text))
        padded[place], mask[place] = self.text, True
        return padded, mask

    @property
    def facts(self) -> dict[str, Any]:
        """Everything but the tensors."""
        names = ("id", "key", "caption", "num_frames", "height", "width", "fps")
        return {name: getattr(self, name) for name in names}


def read_rows(dataset: LatentDataset, positions: range, conversion: Conversion, text_room: int) -> Iterator[ExportRow]:
    """Yield the rows at these positions in order, and read AHEAD of them.

    Raises:
        DamagedRowError: the bytes of a latent or an embedding are not those that were written.
    """
    if dataset.stored_posterior == "moments":
        dataset = dataset.posterior("moments")

    def read(position: int) -> ExportRow:
        sample = dataset[position]
        return ExportRow(
            latent=conversion(sample["latent"], dataset.spec, sample["id"]),
            text=sample.get("text"),
            text_room=text_room,
            fps=_fps(sample["timestamps_sec"]) if math.isnan(sample["fps"]) else sample["fps"],
            **{name: sample[name] for name in ("id", "key", "caption", "num_frames", "height", "width")},
        )

    for row in read_ahead((partial(read, position) for position in positions), AHEAD):
        yield row.result()


def _fps(timestamps: list[float]) -> float:
    gaps = [after - before for before, after in pairwise(timestamps) if after > before]
    return 1 / median(gaps) if gaps else 1.0
