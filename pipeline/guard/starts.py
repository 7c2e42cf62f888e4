"""Start the encoders of a pool, keep out those that fail for good, and compare what the others tell of themselves.

An encoder fails for good if it dies or raises MAX_FAILURES times in a row while it starts on its card (a start that
hangs dies at its deadline), or if its card is broken: it also dies of noise (`pipeline.stages.suspects`). What it does
then depends on the others of the pool:

    one stands      it leaves: at its first start it keeps its card and waits in its constructor until the pass ends.
                    Ray Data gives nothing to an actor that is pending, and does not wait for it. After a restart it
                    raises, because blocks wait for it: Ray drops them, and never restarts it. Their shards stay open,
                    and the next pass takes them.
    one may yet     it waits.
    none will       the run ends, and says why. At a first start an exception does that. After a restart it would only
                    end the actor, and the stream would wait for ever: the encoder answers each record with a receipt.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from pipeline.errors import EncoderError
from pipeline.guard.deadline import deadline, die

if TYPE_CHECKING:
    from pipeline.guard.strikes import Guard

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Starts in a row of one encoder on one card that may fail. Ray would restart it for ever."""

PATIENCE = 60.0
"""Seconds that an encoder which is out waits for those of its pool that have not even begun."""

LONGEST_WAIT = 3600.0
"""Seconds that it waits for those which have begun. One whose machine is lost is not heard of again."""

POLL_SECONDS = 1.0
"""How often an encoder that waits looks at the others."""

Verdict = Literal["try", "try again", "wait", "keep out", "leave", "raise", "answer"]
"""What an encoder does next. `keep out` and `raise` are for its first start, `leave` and `answer` for later ones."""


class LastEncoderError(EncoderError):
    """No encoder of the pool is left. This one stood before, so blocks may wait for it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What an encoder tells of itself when it stands."""

    device: str
    """Name of the device."""
    digest: str
    """Digest of what it made of fixed noise (`vae.kernels.selfcheck`): where it differs, so do the bits of latents."""


@dataclass(frozen=True, slots=True)
class Seat:
    """An encoder and its card. Ray restarts an encoder under its name, mostly on the same card."""

    name: str
    card: str
    """Host and device, for people, too."""


@dataclass(slots=True)
class _Encoder:
    card: str
    state: Literal["starts", "failed", "stands", "out", "left"] = "starts"
    failures: int = 0
    """In a row, on this card."""
    reason: str = "its process died"
    """Of the last failure."""
    stood: bool = False


class Starts:
    """The encoders of a run. No I/O; it is part of Strikes."""

    def __init__(self) -> None:
        self._encoders: dict[str, _Encoder] = {}
        self._broken: dict[str, str] = {}
        self._told: dict[Told, None] = {}
        self._news: list[str] = []
        self._warned: set[str] = set()
        self._num_left = 0

    def new_pass(self) -> None:
        """Forget the encoders of the last pass. Broken cards stay broken."""
        self._encoders = {}
        self._num_left = 0

    def begin(self, seat: Seat, pool: int) -> Verdict:
        """Note that an encoder begins to start. If it began before, and was not heard of since, that start failed."""
        encoder = self._encoders.get(seat.name)
        if encoder is None or encoder.card != seat.card:
            stood = encoder is not None and encoder.stood
            encoder = self._encoders[seat.name] = _Encoder(seat.card, stood=stood)
        elif encoder.state == "starts":
            encoder.failures += 1
            self._warn(seat, "died while it started")
        elif encoder.state == "stands":
            self._warn(seat, "died at work")
        encoder.state = "starts"
        return self.look(seat, pool)

    def failed(self, seat: Seat, reason: str, pool: int) -> Verdict:
        """Note that a start raised. If no encoder of the pool ever stood and each has failed by now, the run ends."""
        if (encoder := self._encoders.get(seat.name)) is None:
            return "raise"
        encoder.failures, encoder.state, encoder.reason = encoder.failures + 1, "failed", reason
        self._warn(seat, f"could not start: {reason}")
        have_failed = [other.state in ("failed", "out") and not other.stood for other in self._encoders.values()]
        if all(have_failed) and len(have_failed) >= pool:
            return "raise"
        verdict = self.look(seat, pool)
        return "try again" if verdict == "try" else verdict

    def look(self, seat: Seat, pool: int, waited: float = 0.0) -> Verdict:
        """Return what an encoder does next that has waited for so many seconds."""
        if (encoder := self._encoders.get(seat.name)) is None:
            return "raise"  # its pass is over
        if encoder.failures < MAX_FAILURES and seat.card not in self._broken:
            return "try"
        others = {other.state for name, other in self._encoders.items() if name != seat.name}
        if "stands" in others:
            self._leave(seat, encoder)
            return "leave" if encoder.stood else "keep out"
        encoder.state = "out"
        patience = LONGEST_WAIT if others - {"out", "left"} else PATIENCE if len(self._encoders) < pool else 0.0
        if waited < patience:
            return "wait"
        return "answer" if encoder.stood else "raise"

    def _warn(self, seat: Seat, what: str) -> None:
        """Tell of a failure at once, once for each kind and card: the run may end before the encoder leaves."""
        if (line := f"no encoder on {seat.card} for now: it {what}") not in self._warned:
            self._warned.add(line)
            self._news.append(line)

    def _leave(self, seat: Seat, encoder: _Encoder) -> None:
        if encoder.state == "left":
            return
        encoder.state = "left"
        self._num_left += encoder.stood
        why = self._broken.get(seat.card) or f"{encoder.failures} starts in a row failed, the last: {encoder.reason}"
        self._news.append(f"no encoder on {seat.card}: {why}. The others of the pool go on without it")

    def why(self, seat: Seat) -> str:
        """Return why an encoder is out."""
        encoder = self._encoders.get(seat.name)
        if encoder is None:
            return "the pass is over"
        if reason := self._broken.get(seat.card):
            return f"{seat.card}: {reason}"
        return (
            f"{encoder.failures} encoders in a row failed while they started on {seat.card}, the last: "
            f"{encoder.reason}. Is there memory for the model?"
        )

    def break_(self, card: str, reason: str) -> None:
        """Note that a card is broken, for the rest of the run."""
        self._broken[card] = reason

    def stands(self, seat: Seat, told: Told | None) -> None:
        """Note that an encoder stands, and whether it differs from the first one."""
        if encoder := self._encoders.get(seat.name):  # or it is of the last pass
            encoder.state, encoder.stood, encoder.failures = "stands", True, 0
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

    def num_left(self) -> int:
        """Return how many encoders left in this pass after they had stood: blocks were lost with them."""
        return self._num_left


def card_of(device: str) -> str:
    """Return the host and the device of this process. Ray tells a worker its GPU so; asking CUDA may hang."""
    number = f":{os.environ.get('CUDA_VISIBLE_DEVICES', '?')}" if device == "cuda" else ""
    return f"{socket.gethostname()} {device}{number}"


def start_encoder(make_encoder: Callable[[], T], guard: Guard, seat: Seat, pool: int, seconds: float) -> T:
    """Start an encoder of a pool that begins with `pool` encoders. It counts as hung after so many seconds.

    Raises:
        LastEncoderError: it stood before, and no encoder of the pool is left.
        EncoderError: it is out.
        Exception: what `make_encoder` raises, if the run is to end of it.
    """
    verdict = guard.starting(seat, pool)
    if verdict == "try":
        try:
            with deadline(seconds):
                encoder = make_encoder()
        except Exception as error:
            message = str(error) or type(error).__name__
            log.error("card=%s an encoder cannot start: %s", seat.card, message)
            verdict = guard.start_failed(seat, message, pool)
            if verdict == "raise":
                raise
            if verdict == "try again":
                die()  # a CUDA context may stay poisoned until its process ends
        else:
            guard.started(seat, getattr(encoder, "told", None))
            return encoder
    began = time.monotonic()
    while verdict in ("wait", "keep out"):
        time.sleep(POLL_SECONDS)
        verdict = guard.look(seat, pool, time.monotonic() - began)
    raise (LastEncoderError if verdict == "answer" else EncoderError)(guard.why_out(seat))


@contextlib.contextmanager
def control(guard: Guard, seat: Seat, reason: str) -> Iterator[None]:
    """Run the body as the proof that a card still works. If it dies of it, the card is broken, for this reason."""
    key = f"control {seat.name} {seat.card}/"
    if guard.begin(key):
        guard.broken(seat, reason)
        die()  # so that every block which waits here is told: see `start_encoder`
    try:
        yield
    finally:
        guard.end(key)
