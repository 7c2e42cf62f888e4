"""Keep one device busy from several threads: they take turns to compute, and copy while another one computes.

    thread 1   send | compute          | finish
    thread 2          send |           | compute          | finish
    thread 3                 send |                       | compute ...

A piece of work is three calls, each of which returns the next: `start` copies to the device, what it returns computes,
and what that returns finishes without the device. Only one piece computes at a time, so a deadline around that call is
that piece's own, and an error of the device is raised in its call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

Finish = Callable[[], R]
Compute = Callable[[], Finish[R]]
Start = Callable[[T], Compute[R]]

THREADS = 3
"""Pieces of work at a time: one is sent, one computes, one finishes."""


class Turns(Generic[T, R]):
    """Call `start`, compute and finish for each piece; safe to call from THREADS threads at a time."""

    def __init__(self, start: Start[T, R], turn: AbstractContextManager[Any] | None = None) -> None:
        """`turn` is held while a piece computes: a lock, and in tests one of a simulated clock."""
        self._start = start
        self._turn = threading.Lock() if turn is None else turn

    def __call__(self, piece: T, around: Callable[[Compute[R]], Finish[R]] = lambda compute: compute()) -> R:
        """Return what `finish` returns. `around` calls compute, during this piece's turn: for example in a deadline.

        If `start` fails beside another piece's turn, it runs again in its own turn, and there its error counts.
        """
        try:
            compute = self._start(piece)
        except Exception:
            compute = partial(self._start_late, piece)
        with self._turn:
            finish = around(compute)
        return finish()

    def _start_late(self, piece: T) -> Finish[R]:
        return self._start(piece)()


class Courier:
    """Copy to a device and back through pinned memory, on a stream of its own where the device is CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def send(self, x: np.ndarray[Any, Any]) -> Callable[[], Tensor]:
        """Begin to copy x, and return what gives the copy to the stream that computes.

        x may be read-only, as what Ray hands over is. Pinned memory is of torch's caching allocator, which reuses it
        when the copy has ended.
        """
        if self._stream is None:
            x = np.require(x, requirements="W")
            return lambda: torch.from_numpy(x)
        pinned = torch.empty(x.shape, dtype=torch.from_numpy(x[:0].copy()).dtype, pin_memory=True)
        np.copyto(pinned.numpy(), x)
        with torch.cuda.stream(self._stream):
            sent = pinned.to(self._device, non_blocking=True)
            arrived = self._stream.record_event()

        def receive() -> Tensor:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(arrived)
            sent.record_stream(stream)
            return sent

        return receive

    def fetch(self, x: Tensor) -> Tensor:
        """Return x on the CPU, when everything before it on its stream has ended. It raises errors of the device.

        The wait blocks: `Stream.synchronize` would keep a core busy, which decoding needs.
        """
        if self._stream is None:
            return x.cpu()
        pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
        ended = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        ended.record(torch.cuda.current_stream(self._device))
        ended.synchronize()
        return pinned
