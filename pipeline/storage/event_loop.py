"""Coroutines of the async clients, run on fsspec's loop, each with an end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CALL_SECONDS = 600.0
"""Of one request, its answer's headers (or whole answer, if it is no download) included."""

FILL_SECONDS = 5.0
"""After which a read that got something returns what it has, so that a slow server is noticed (see storage.Stream)."""


def finished(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
    """Run a coroutine on the loop's own thread, and wait for its result.

    Raises:
        TimeoutError: it took longer than `seconds` (CALL_SECONDS), and was cancelled.
    """

    async def bounded() -> T:
        async with asyncio.timeout(seconds or CALL_SECONDS):
            return await coroutine

    return asyncio.run_coroutine_threadsafe(bounded(), loop).result()


async def fill(read: Callable[[int], Awaitable[bytes]], view: memoryview) -> int:
    """Read until the view is full, the body ends or FILL_SECONDS are over; return how much came.

    If the body breaks, what came before counts as read: the next read meets the same end.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + FILL_SECONDS
    filled = 0
    while filled < len(view) and (not filled or clock() < end):
        try:
            piece = await read(len(view) - filled)
        except Exception:
            if filled:
                break
            raise
        if not piece:
            break
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled
