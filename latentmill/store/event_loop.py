"""Run coroutines of the async clients on fsspec's event loop, each with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

CALL_SECONDS = 600.0
"""Time limit of one request, up to the headers of the response (up to its end, if it is not a download)."""

FILL_SECONDS = 5.0
"""Time after which a read returns the bytes that it has, if any, so that Stream can detect a slow server."""


def finished(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
    """Run a coroutine on the thread of the loop, and wait for its result.

    Raises:
        TimeoutError: it took longer than `seconds` (CALL_SECONDS), and was cancelled.
    """

    async def bounded() -> T:
        async with asyncio.timeout(seconds or CALL_SECONDS):
            return await coroutine

    return asyncio.run_coroutine_threadsafe(bounded(), loop).result()


async def fill(read: Callable[[int], Awaitable[bytes]], view: memoryview) -> int:
    """Read until the view is full, the body ends or FILL_SECONDS are over. Return the number of bytes.

    If the connection breaks after some bytes, these bytes are returned; the next read gets the error.
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
