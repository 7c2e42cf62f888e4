"""What was lost of a stream, and which frames that reaches.

A keyframe stops damage twice over. What was lost before it, in decoding order, reaches no frame that is decoded and
shown after it. And the pictures that lead it (decoded after it, shown before it: the B-frames of an open GOP) serve one
another only: no frame shown after a keyframe may be predicted from what precedes that keyframe in either order
(H.265 8.3.2, H.266 8.3.2; H.264 D.2.8 says it of recovery points; MPEG-2 predicts nothing from B-frames).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Place:
    """Where a packet stands in the stream."""

    order: int
    """In decoding order."""
    disposable: bool = False
    """No other frame is predicted from its own."""
    keyframe: bool = False
    """Decoding can begin here, by the container's account."""
    leads: int | None = None
    """When the keyframe is shown that its frame leads; None if it leads none."""


@dataclass(frozen=True, slots=True)
class _Damage:
    """A packet that was lost, or gave a frame that the decoder flags."""

    place: Place
    ticks: int | None
    """When its frame should have been shown; None if a frame is there, or nobody knows."""


class Damage:
    """Every damage since the last `forget`, and the keyframes that stop it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin with a decoder that knows of no frame before."""
        self._all: list[_Damage] = []
        self._keyframes: list[tuple[int, int]] = []
        self._led: int | None = None
        """When the last keyframe is shown, unless the clock started anew since."""
        self._last_dts: int | None = None

    def __bool__(self) -> bool:
        return bool(self._all)

    def follow(self, packet: Any, order: int, ticks: int, *, disposable: bool) -> Place:
        """Place the next packet of the stream, which is shown at `ticks`."""
        leads = None
        if packet.is_keyframe:
            self._keyframes.append((order, ticks))
            self._led = ticks
        elif packet.dts is None or self._last_dts is None or packet.dts <= self._last_dts:
            self._led = None
        elif self._led is not None and ticks < self._led:
            leads = self._led
        self._last_dts = packet.dts
        return Place(order, disposable, packet.is_keyframe, leads)

    def refuse_keyframe(self, place: Place) -> None:
        """Let this keyframe stop nothing: it is predicted itself, and begins a gradual refresh, as H.264 allows."""
        self._keyframes = [(order, ticks) for order, ticks in self._keyframes if order != place.order]
        self._led = None
        self._all = [replace(d, place=replace(d.place, leads=None)) for d in self._all]

    def lose(self, place: Place, ticks: int | None) -> None:
        """No frame comes of the packet at `place`, which should have been shown at `ticks`."""
        self._all.append(_Damage(place, ticks))

    def flag(self, place: Place) -> None:
        """The frame of the packet at `place` came, and is not what it should be."""
        self._all.append(_Damage(place, None))

    def hole_between(self, ticks: int, until: int) -> bool:
        """Whether a frame that was lost should have been shown after `ticks`, up to and including `until`."""
        return any(d.ticks is not None and ticks < d.ticks <= until for d in self._all)

    def lost_after(self, ticks: int) -> bool:
        """Whether a frame later than `ticks` was lost."""
        return any(d.ticks is not None and d.ticks > ticks for d in self._all)

    def reaches(self, order: int, ticks: int) -> bool:
        """Whether the frame of this place and time may have been predicted from what was lost."""
        if not self._all:
            return False
        stopped = max((key for key, shown in self._keyframes if key <= order and shown <= ticks), default=0)
        return any(
            stopped <= d.place.order < order
            and not d.place.disposable
            and (d.place.leads is None or ticks < d.place.leads)
            for d in self._all
        )
