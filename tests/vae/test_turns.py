"""Law: threads that take turns keep the device busy, and what happens to one piece of work happens in its own turn.

Time is simulated: it passes only while every thread waits, so that the figures are exact and nothing sleeps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch

from vae.turns import THREADS, Compute, Courier, Finish, Turns


class Clock:
    """Simulated time for a number of threads."""

    def __init__(self, num_threads: int) -> None:
        self.now = 0.0
        self._changed = threading.Condition()
        self._running = num_threads
        self._waiting: list[Callable[[], bool]] = []
        self._alarms: list[float] = []
        self._held = False

    def pass_time(self, seconds: float) -> None:
        """Wait for so long."""
        with self._changed:
            alarm = self.now + seconds
            self._alarms.append(alarm)
            self._wait_for(lambda: self.now >= alarm)
            self._alarms.remove(alarm)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the one lock of this clock: waiting for it lets time pass."""
        with self._changed:
            self._wait_for(lambda: not self._held)
            self._held = True
        try:
            yield
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()

    def leave(self) -> None:
        """End a thread."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        self._waiting.append(ready)
        self._running -= 1
        while not ready():
            if self._running == 0 and not any(other() for other in self._waiting):
                self.now = min(alarm for alarm in self._alarms if alarm > self.now)
                self._changed.notify_all()
            else:
                self._changed.wait()
        self._waiting.remove(ready)
        self._running += 1
        self._changed.notify_all()


class Lock:
    """The clock's lock as an object that can be entered again and again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entered = threading.local()

    def __enter__(self) -> None:
        self._entered.lock = self._clock.lock()
        self._entered.lock.__enter__()

    def __exit__(self, *error: object) -> None:
        self._entered.lock.__exit__(None, None, None)


SEND, ASK, COMPUTE, FINISH = 0.020, 0.001, 0.400, 0.015
"""Seconds of the estimate for a clip of 49x480x720: copies, the call to the guard, the encoder, bytes."""


@dataclass
class Device:
    """A device whose work takes simulated time."""

    clock: Clock
    seconds: Callable[[int], float] = lambda piece: COMPUTE
    computing: list[tuple[float, float, int]] = field(default_factory=list)
    turns: dict[int, float] = field(default_factory=dict)

    def start(self, piece: int) -> Compute[int]:
        self.clock.pass_time(SEND)

        def compute() -> Finish[int]:
            began = self.clock.now
            self.clock.pass_time(self.seconds(piece))
            self.computing.append((began, self.clock.now, piece))
            return finish

        def finish() -> int:
            self.clock.pass_time(FINISH)
            return piece * 10

        return compute

    def around(self, piece: int) -> Callable[[Compute[int]], Finish[int]]:
        def guarded(compute: Compute[int]) -> Finish[int]:
            self.clock.pass_time(ASK)
            began = self.clock.now
            finish = compute()
            self.turns[piece] = self.clock.now - began
            return finish

        return guarded

    def idle(self) -> float:
        """The share of time between the first and the last computation in which nothing computes."""
        spans = sorted(self.computing)
        return 1 - sum(end - begin for begin, end, _ in spans) / (spans[-1][1] - spans[0][0])


def feed(
    num_threads: int, pieces: int, seconds: Callable[[int], float] = lambda piece: COMPUTE
) -> tuple[Device, set[int]]:
    clock = Clock(num_threads)
    device = Device(clock, seconds)
    turns = Turns(device.start, Lock(clock))
    left, results = iter(range(pieces)), set()

    def work() -> None:
        try:
            for piece in left:
                results.add(turns(piece, device.around(piece)))
        finally:
            clock.leave()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return device, results


def test_the_device_hardly_waits() -> None:
    device, results = feed(THREADS, 24)
    assert results == {piece * 10 for piece in range(24)}
    assert device.idle() == pytest.approx(ASK / (ASK + COMPUTE), rel=0.1)
    assert device.idle() < 0.02


def test_one_thread_lets_it_wait() -> None:
    """What the turns are for: 36 ms of 436."""
    device, _ = feed(1, 24)
    assert device.idle() > 0.07


def test_one_piece_computes_at_a_time_and_its_turn_is_its_own() -> None:
    """A deadline around a turn falls on the piece that is slow, whichever others wait for theirs."""
    device, _ = feed(THREADS, 9, lambda piece: 50.0 if piece == 4 else COMPUTE)
    spans = sorted(device.computing)
    assert all(end <= begin for (_, end, _), (begin, _, _) in pairwise(spans))
    assert device.turns.pop(4) == pytest.approx(50.0)
    assert all(seconds == pytest.approx(COMPUTE) for seconds in device.turns.values())


@pytest.mark.parametrize("where", ["start", "compute", "finish"])
def test_an_error_belongs_to_its_piece_and_frees_the_turn(where: str) -> None:
    def fail(name: str, piece: int) -> None:
        if name == where and piece == 1:
            raise RuntimeError(f"{name} of {piece}")

    def start(piece: int) -> Compute[int]:
        fail("start", piece)

        def finish() -> int:
            fail("finish", piece)
            return piece

        def compute() -> Finish[int]:
            fail("compute", piece)
            return finish

        return compute

    held = threading.Lock()
    turns = Turns(start, held)

    def in_turn(compute: Compute[int]) -> Finish[int]:
        assert held.locked()
        return compute()

    assert turns(0) == 0
    with pytest.raises(RuntimeError, match=f"{where} of 1"):
        turns(1, in_turn)
    assert turns(2) == 2


def test_on_a_cpu_the_courier_copies_only_what_is_read_only() -> None:
    courier, x = Courier(torch.device("cpu")), np.ones(3, np.float32)
    sent = courier.send(x)()
    assert sent.data_ptr() == x.ctypes.data
    assert courier.fetch(sent) is sent
    x.flags.writeable = False
    assert courier.send(x)().tolist() == [1, 1, 1]
