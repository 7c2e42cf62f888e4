"""An encoder that runs out of memory, or whose device fails, on the clips that say so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.records import Chunk, Latent
from pipeline.stages.encode_chunk import Encoder
from tests.chaos.stages import Plot, note
from vae.turns import Compute, Finish

FAILURES = {"oom_once": 1, "oom_twice": 2, "device_once": 1}
"""How often the forward of such a clip fails, over all processes: the first failure is tried again in place, the
second ends the actor. An error of the device ends it at once."""


class PoisonedEncoder(Encoder):
    """The real encoder, which notes each chunk that it begins."""

    def __init__(self, plot: Plot, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plot = plot

    def start(self, chunk: Chunk) -> Compute[Latent]:
        compute = super().start(chunk)

        def begun() -> Finish[Latent]:
            note(self._plot, f"{chunk.id.shard}/{chunk.id.video}/{chunk.id.clip}/{chunk.id.chunk}")
            time.sleep(self._plot.pause)
            return compute()

        return begun

    def _moments(self, chunk: Chunk, receive: Callable[[], torch.Tensor]) -> torch.Tensor:
        kind = chunk.facts.key.partition("-")[0]
        if kind in self._plot.armed and chunk.id.clip == 1 and self._fails(kind, chunk):
            raise (torch.AcceleratorError if kind == "device_once" else torch.OutOfMemoryError)(f"chaos: {kind}")
        return super()._moments(chunk, receive)

    def _fails(self, kind: str, chunk: Chunk) -> bool:
        if kind == "oom_always":
            return True
        for n in range(FAILURES.get(kind, 0)):
            try:
                Path(f"{self._plot.diary}.{kind}.{chunk.id.chunk}.{n}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False
