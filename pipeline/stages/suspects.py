"""Judge a suspect: a chunk that killed MAX_STRIKES encoders. It does not use Ray.

1. It is encoded alone, in a child process with an encoder of its own.
2. If that dies, too, this encoder encodes noise of the same shape. A card that dies of noise is broken: its encoder
   leaves the pool (`pipeline.guard.starts`), and the strikes that it caused are forgotten, so that another card tries.
3. Only if the noise passes is the chunk rejected: nothing is rejected because of a card.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from pipeline.errors import LatentmillError
from pipeline.guard.alone import DiedAloneError, alone
from pipeline.guard.deadline import deadline, die
from pipeline.guard.device import NoRoomError, is_of_the_device
from pipeline.guard.starts import Seat, control
from pipeline.guard.strikes import MAX_STRIKES, Guard
from pipeline.records import Chunk, Latent

T = TypeVar("T")

log = logging.getLogger(__name__)


class NonfiniteLatentError(LatentmillError):
    """The latent holds NaN or infinity: the clip is rejected, as `nonfinite`."""


@dataclass(frozen=True, slots=True)
class Court:
    """What is needed to judge the suspects of one encoder."""

    make_encoder: Callable[[], Callable[[Chunk], Latent]]
    encode: Callable[[Chunk], Latent]
    """The encoder of this process."""
    guard: Guard
    seat: Seat
    deadline: float
    """Seconds."""

    def judge(self, chunk: Chunk, strikes: int) -> Latent | None:
        """Encode a suspect in a child process, which gets the memory that this one only keeps for later.

        Returns None if the child's encoder cannot start, which proves nothing: the suspect is then tried here, as any
        other chunk. If it kills this encoder, it comes again with one strike more.

        Raises:
            DiedAloneError: it killed its child; or no child could start, and it has killed twice MAX_STRIKES encoders.
        """
        torch.cuda.empty_cache()
        try:
            return alone(self.deadline, _encode_alone, self.make_encoder, chunk)
        except DiedAloneError as error:
            died = error
        except NoRoomError as error:
            if strikes < 2 * MAX_STRIKES:
                log.warning("shard=%s cannot be tried alone: %s", chunk.id.shard, error)
                return None
            reason = f"killed {strikes} encoders, and no other could start to try it alone: {error}"
            died = DiedAloneError(reason, timed_out=False)
        of = f"encoders die of noise of {'x'.join(map(str, chunk.frames.shape[:3]))} as they do of a clip"
        with control(self.guard, self.seat, of), deadline(self.deadline), contextlib.suppress(NonfiniteLatentError):
            or_die(partial(self.encode, noise_like(chunk)), chunk)
        raise died


def noise_like(chunk: Chunk) -> Chunk:
    """Return a chunk of the same shape with noise as its frames. No clip's name is on it."""
    noise = np.random.default_rng(0).integers(0, 256, chunk.frames.shape, np.uint8)
    return replace(chunk, frames=noise, facts=replace(chunk.facts, id="", key="noise", uri=""))


def or_die(step: Callable[[], T], chunk: Chunk) -> T:
    """Call a step, or end this process if the device cannot continue: out of memory twice, or a broken CUDA context.

    The death counts as a strike. Ray restarts the actor and gives it the chunk again.
    """
    try:
        return step()
    except (RuntimeError, MemoryError) as error:
        if not is_of_the_device(error):
            raise
        log.error("shard=%s video=%d clip=%d encoder dies: %s", chunk.id.shard, chunk.id.video, chunk.id.clip, error)
        die()


def _encode_alone(make_encoder: Callable[[], Callable[[Chunk], Latent]], chunk: Chunk) -> Latent:
    """Run in the child. Raises NoRoomError."""
    try:
        encoder = make_encoder()
    except (RuntimeError, MemoryError) as error:
        if not is_of_the_device(error):
            raise
        raise NoRoomError(f"{type(error).__name__}: {error}") from None
    return or_die(partial(encoder, chunk), chunk)
