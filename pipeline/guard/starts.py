"""Start the encoders of a pool, and compare what each tells of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import EncoderError

if TYPE_CHECKING:
    from pipeline.guard.strikes import Guard

T = TypeVar("T")

MAX_DEATHS = 3
"""Encoders in a row that may die while they start. Ray would restart them for ever."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an encoder tells of itself when it stands."""

    device: str
    """Name of the device."""
    digest: str
    """Digest of what it made of fixed noise (`vae.kernels.selfcheck`): where it differs, so do the bits of latents."""


class Starts:
    """The encoders of a run, as far as they told. No I/O; it is part of Strikes."""

    def __init__(self) -> None:
        self._starts = 0
        self._told: dict[Told, None] = {}
        self._news: list[str] = []

    def new_pass(self) -> None:
        """Reset the count of starts."""
        self._starts = 0

    def begin(self) -> int:
        """Count an encoder that begins to start. Return the starts since the last success, this one included."""
        self._starts += 1
        return self._starts

    def stands(self, told: Told | None) -> None:
        """Reset the count of starts, because an encoder stands; note if it differs from the first one."""
        self._starts = 0
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

    def told(self) -> list[Told]:
        """Return what the encoders told, each once, the first one first."""
        return list(self._told)

    def news(self) -> list[str]:
        """Return what a person should know and was not told yet."""
        news, self._news = self._news, []
        return news


def start_encoder(make_encoder: Callable[[], T], guard: Guard, pool: int) -> T:
    """Start an encoder of a pool of `pool` encoders.

    Raises:
        EncoderError: MAX_DEATHS encoders in a row died while they started.
    """
    if (deaths := guard.starting() - pool) >= MAX_DEATHS:
        raise EncoderError(f"{deaths} encoders in a row died while they started: is there memory for the model?")
    encoder = make_encoder()
    guard.started(getattr(encoder, "told", None))
    return encoder
