"""Start the encoders of a pool: one that cannot start leaves the work to the others, and what each tells is compared.

Ray Data ends the whole run when the constructor of an actor raises, so a card that fails for good must not get there
while other encoders work. An encoder that never stood waits: it holds its card, takes no work, and tries again in a new
process. One that stood and died has work, which Ray would keep for it for ever: it raises, so that its blocks fail, and
the next pass takes their shards. The last that cannot start ends the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import ConfigError, EncoderError
from pipeline.guard.deadline import die

if TYPE_CHECKING:
    from pipeline.guard.strikes import Guard

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Encoders in a row that may die while they start, while no other works. Ray would restart them for ever."""

RETRY_SECONDS = 60.0
"""How long an encoder that cannot start waits before it tries again; and how long it waits for another one to stand."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an encoder tells of itself when it stands."""

    device: str
    """Name of the device."""
    digest: str
    """Digest of what it made of fixed noise (`vae.kernels.selfcheck`): encoders with equal digests give equal bits."""


class Starts:
    """The encoders of a run, as far as they told. No I/O; it is part of Strikes."""

    def __init__(self) -> None:
        self._starts = 0
        self._standing: set[str] = set()
        self._told: dict[Told, None] = {}
        self._news: list[str] = []

    def new_pass(self) -> None:
        """Forget which encoders stand: a pass has a pool of its own."""
        self._starts = 0
        self._standing.clear()

    def begin(self) -> int:
        """Count an encoder that begins to start. Return the starts since the last success, this one included."""
        self._starts += 1
        return self._starts

    def stands(self, encoder: str, told: Told | None) -> None:
        """Reset the count of starts, because an encoder stands; note if it differs from the first one."""
        self._starts = 0
        self._standing.add(encoder)
        if told is None or told in self._told:
            return
        first = next(iter(self._told), told)
        self._told[told] = None
        if told.digest != first.digest:
            self._news.append(
                f"an encoder on {told.device} makes other bits of the same frames than the first one, on "
                f"{first.device} (self-check {told.digest[:12]}, {first.digest[:12]}): cards, free memory or releases "
                "differ, and the last bits of a latent depend on the encoder that it meets"
            )

    def is_any_standing(self) -> bool:
        """Return whether an encoder of this pass stands."""
        return bool(self._standing)

    def fails(self, encoder: str, reason: str) -> bool:
        """Note that an encoder cannot start. Return whether it leaves: it stood and has work, or no other works."""
        if stood := encoder in self._standing:
            self._standing.remove(encoder)
        if self._standing:
            self._news.append(f"an encoder cannot start, the others go on: {reason}")
        return stood or not self._standing

    def told(self) -> list[Told]:
        """Return what the encoders told, each once, the first one first."""
        return list(self._told)

    def news(self) -> list[str]:
        """Return what a person should know and was not told yet."""
        news, self._news = self._news, []
        return news


def start_encoder(make_encoder: Callable[[], T], guard: Guard, pool: int) -> T:
    """Start an encoder of a pool of `pool` encoders. While others work, one that cannot start waits, and dies.

    Raises:
        EncoderError: MAX_DEATHS encoders in a row died while they started, and no other works.
        Exception: what `make_encoder` raises, if no other works, or if this encoder stood before.
    """
    try:
        if (deaths := guard.starting() - pool) >= MAX_DEATHS:
            raise EncoderError(f"{deaths} encoders in a row died while they started: is there memory for the model?")
        encoder = make_encoder()
    except Exception as error:
        if pool > 1 and not isinstance(error, ConfigError):  # the others may be about to stand
            for _ in range(int(RETRY_SECONDS)):
                if guard.is_any_standing():
                    break
                time.sleep(1)
        if guard.cannot_start(f"{type(error).__name__}: {error}"):
            raise
        log.error("an encoder cannot start, the others go on: %s", error)
        time.sleep(RETRY_SECONDS)
        die()
    guard.started(getattr(encoder, "told", None))
    return encoder
