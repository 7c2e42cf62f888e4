"""Spread a function over many items: on Ray, or, with one worker, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import ConfigError
from pipeline.runs.stop import Stop

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpreadRule:
    """How the work is spread."""

    workers: int = 0
    """Pieces at a time. 0: one for each CPU; 1: in this process, without Ray."""
    ray_address: str = "local"
    """`local` starts a Ray on this machine; `auto` or an address joins a cluster."""
    grace: float = 60.0
    """Seconds that the pieces under way have after SIGTERM or Ctrl-C."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"--workers must be 0 (one for each CPU) or more, got {self.workers}")


def spread(
    function: Callable[..., Any], shared: tuple[Any, ...], items: Sequence[T], stop: Stop, rule: SpreadRule
) -> Iterator[tuple[T, Any]]:
    """Call `function(*shared, item)` for each item, and yield (item, result) as it is done.

    If the call raised an exception, this is the result. After a signal no further call begins.

    Raises:
        ConfigError: no cluster answers.
    """
    if rule.workers != 1 and items:
        from pipeline.control.ray_pieces import on_ray

        yield from on_ray(function, shared, items, stop, address=rule.ray_address, workers=rule.workers)
        return
    for item in items:
        if stop.asked:
            return
        try:
            yield item, function(*shared, item)
        except Exception as error:
            yield item, error
