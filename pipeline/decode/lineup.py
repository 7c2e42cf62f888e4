"""Lineup: the clips of one pass, each created when it begins and released when it is handed out.

A video may have thousands of clips, and one long picture may fill many of them, so no step keeps more than one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

from pipeline.decode.builder import ClipBuilder
from pipeline.decode.clip import DecodedClip
from pipeline.decode.frame_times import FrameTimes
from pipeline.decode.spec import DecodeSpec
from pipeline.errors import VideoError


class Lineup:
    """Create a builder for each spec in the order in which clips begin, and yield results in the order of the specs."""

    def __init__(
        self, specs: Sequence[DecodeSpec], make: Callable[[DecodeSpec], ClipBuilder], times: FrameTimes
    ) -> None:
        """Take specs sorted by start."""
        self._specs, self._make, self._times = specs, make, times
        self._made: dict[int, ClipBuilder] = {}
        """Builders by index of the spec, until they are handed out."""
        self._waiting: list[tuple[int, int]] = []
        """A heap of (first ticks, index) of the builders that have not begun."""
        self._num_made = 0
        self.num_yielded = 0

    def restart(self) -> None:
        """Start again with the clips that have no result yet."""
        unfinished = {index: builder for index, builder in self._made.items() if not builder.is_finished}
        for builder in unfinished.values():
            builder.restart()
        self._waiting = [(builder.first, index) for index, builder in unfinished.items()]
        heapq.heapify(self._waiting)

    @property
    def num_begun(self) -> int:
        """Number of clips that have begun and are not handed out, so that have frames in memory."""
        return len(self._made) - len(self._waiting)

    @property
    def next_first(self) -> int | None:
        """Return the ticks at which the next clip begins; None if all have begun."""
        while self._num_made < len(self._specs) and (not self._waiting or self._earliest <= self._waiting[0][0]):
            index = self._num_made
            builder = self._builder(index)
            if not builder.is_finished:
                heapq.heappush(self._waiting, (builder.first, index))
        return self._waiting[0][0] if self._waiting else None

    def beginning(self, until: int) -> Iterator[ClipBuilder]:
        """Yield the clips that begin before `until`, one by one."""
        while (first := self.next_first) is not None and first < until:
            _, index = heapq.heappop(self._waiting)
            yield self._made[index]

    def left(self) -> Iterator[ClipBuilder]:
        """Yield every clip that is not handed out, one by one, in the order of the specs."""
        while self.num_yielded < len(self._specs):
            yield self._made.get(self.num_yielded) or self._builder(self.num_yielded)

    def results(self) -> Iterator[DecodedClip | VideoError]:
        """Yield the results that are ready, in the order of the specs."""
        while (builder := self._made.get(self.num_yielded)) is not None and builder.is_finished:
            del self._made[self.num_yielded]
            self.num_yielded += 1
            yield builder.result()

    @property
    def _earliest(self) -> int:
        """Return the earliest ticks at which a clip without a builder can begin. A piece begins after its start."""
        return self._times.first_from(self._specs[self._num_made].start) - 1

    def _builder(self, index: int) -> ClipBuilder:
        assert index == self._num_made
        self._num_made += 1
        builder = self._made[index] = self._make(self._specs[index])
        return builder
