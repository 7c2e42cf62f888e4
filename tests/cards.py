"""Encoders on cards that fail. A card is a GPU as Ray hands it out: a number in CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.errors import ConfigError
from pipeline.guard.device import NoRoomError
from pipeline.records import Chunk
from pipeline.stages.encode_chunk import Encoder

Way = Literal["dies", "raises", "is wrong", "hangs", "fails at work", "hangs at work"]

SOON = 0.5
"""Seconds; the deadline of what hangs, which is minutes for what is healthy."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Which cards fail, how, and when."""

    way: Way
    cards: tuple[str, ...]
    later: bool
    """They work until one of them has encoded a chunk."""
    folder: Path

    @property
    def worked(self) -> Path:
        """It exists as soon as one of the cards has encoded a chunk."""
        return self.folder / "worked"

    def acts(self) -> bool:
        """Whether the card of this process fails now."""
        return self.card in self.cards and (not self.later or self.worked.exists())

    def fail(self, way: Way) -> None:
        """Fail in that way, and leave a mark."""
        with (self.folder / "failures").open("a") as file:
            file.write(".")
        fail(way)

    def is_noticed(self) -> bool:
        """Whether a card failed twice: one that dies is noticed when it starts again."""
        failures = self.folder / "failures"
        return failures.exists() and failures.stat().st_size > 1

    @property
    def card(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]


class OnCard(Encoder):
    """The real encoder, on a CPU, as if it were on that card."""

    def __init__(self, plot: Plot, where: str, spec: Any, **named: Any) -> None:
        self._plot = plot
        if plot.acts() and not plot.way.endswith("at work"):
            plot.fail(plot.way)
        super().__init__(where, spec, **named | {"device": "cpu"})

    def _moments(self, chunk: Chunk, receive: Callable[[], torch.Tensor]) -> torch.Tensor:
        plot = self._plot
        if plot.acts():
            plot.fail(plot.way if plot.way.endswith("at work") else "fails at work")
        moments = super()._moments(chunk, receive)
        if plot.later and plot.card in plot.cards:
            plot.worked.touch()
        while plot.later and not plot.worked.exists():  # or the sound one might do it all
            threading.Event().wait(0.1)
        return moments


def fail(way: Way) -> None:
    """Fail in that way."""
    match way:
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raises":
            raise NoRoomError("CUDA error: no room on this card")
        case "is wrong":
            raise ConfigError("self-check: bfloat16 differs from float32 by 3")
        case "fails at work":
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        case "hangs" | "hangs at work":
            faulthandler.dump_traceback_later(SOON, exit=True)
            threading.Event().wait()
