"""Damage: which packets of a stream were lost, and which frames may be predicted from them.

A keyframe stops damage in two ways. Loss before it, in decoding order, affects no frame that is decoded and shown after
it. And its leading pictures (decoded after it, shown before it: the B-frames of an open GOP) are references for one
another only: no frame shown after a keyframe may be predicted from a frame that precedes this keyframe in either order
(H.265 8.3.2, H.266 8.3.2; H.264 D.2.8 for recovery points; MPEG-2 predicts nothing from B-frames).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a packet in the stream."""

    order: int
    """Index in decoding order."""
    disposable: bool = False
    """No other frame is predicted from its frame."""
    keyframe: bool = False
    """Decoding can begin with this packet, as it is marked."""
    leads: int | None = None
    """Ticks of the keyframe that its frame leads; None if it leads none."""


@dataclass(frozen=True, slots=True)
class _Damage:
    """A packet that was lost, or whose frame the decoder flags as corrupt."""

    place: Place
    ticks: int | None
    """Time at which its frame should have been shown; None if there is a frame, or the time is unknown."""


class Damage:
    """All damage since the last `forget`, and the keyframes that stop it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start again, for a decoder that has no earlier frames."""
        self._all: list[_Damage] = []
        self._keyframes: list[tuple[int, int]] = []
        self._led: int | None = None
        """Ticks of the last keyframe, unless the clock restarted since then."""
        self._last_dts: int | None = None

    def __bool__(self) -> bool:
        return bool(self._all)

    def follow(self, packet: Any, place: Place, ticks: int) -> Place:
        """Return the place of the next packet of the stream, whose frame is shown at `ticks`, with what it leads."""
        leads = None
        if place.keyframe:
            self._keyframes.append((place.order, ticks))
            self._led = ticks
        elif packet.dts is None or self._last_dts is None or packet.dts <= self._last_dts:
            self._led = None
        elif self._led is not None and ticks < self._led:
            leads = self._led
        self._last_dts = packet.dts
        return replace(place, leads=leads)

    def refuse_keyframe(self, place: Place) -> None:
        """Treat this keyframe as an ordinary frame: it is predicted and begins a gradual refresh, as H.264 allows."""
        self._keyframes = [(order, ticks) for order, ticks in self._keyframes if order != place.order]
        self._led = None
        self._all = [replace(d, place=replace(d.place, leads=None)) for d in self._all]

    def lose(self, place: Place, ticks: int | None) -> None:
        """Record that the packet at `place`, which should have been shown at `ticks`, gives no frame."""
        self._all.append(_Damage(place, ticks))

    def flag(self, place: Place) -> None:
        """Record that the frame of the packet at `place` is corrupt."""
        self._all.append(_Damage(place, None))

    def hole_between(self, ticks: int, until: int) -> bool:
        """Return whether a lost frame should have been shown after `ticks`, up to and including `until`."""
        return any(d.ticks is not None and ticks < d.ticks <= until for d in self._all)

    def lost_after(self, ticks: int) -> bool:
        """Return whether a frame later than `ticks` was lost."""
        return any(d.ticks is not None and d.ticks > ticks for d in self._all)

    def reaches(self, order: int, ticks: int) -> bool:
        """Return whether the frame with this place and time may have been predicted from a lost frame."""
        if not self._all:
            return False
        stopped = max((key for key, shown in self._keyframes if key <= order and shown <= ticks), default=0)
        return any(
            stopped <= d.place.order < order
            and not d.place.disposable
            and (d.place.leads is None or ticks < d.place.leads)
            for d in self._all
        )
