"""Spread a function over many items: on Ray, or, with one worker, in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pipeline.errors import ConfigError
from pipeline.runs.progress import Progress
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
    log_json: bool = False
    """Write the log as JSON, one event a line: pass_begun, shard_committed, progress and so on."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"--workers must be 0 (one for each CPU) or more, got {self.workers}")


class Spread(Protocol):
    """Call `function(*shared, item)` for each item, and yield (item, result) as it is done.

    If the call raised an exception, this is the result. After a signal no further call begins.
    """

    def __call__(
        self, function: Callable[..., Any], shared: tuple[Any, ...], items: Iterable[T]
    ) -> Iterator[tuple[T, Any]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Where the calls go."""

    spread: Spread
    measure: Callable[[Progress], None] = lambda _: None
    """Is told the progress of the run now and then."""


@contextlib.contextmanager
def workers_of(rule: SpreadRule, stop: Stop, metrics: str) -> Iterator[Workers]:
    """Start what the rule says. `metrics` is what the names of the metrics begin with.

    Raises:
        ConfigError: no cluster answers.
    """
    if rule.workers != 1:
        from pipeline.control.ray_metrics import Metrics
        from pipeline.control.ray_pieces import on_ray

        with on_ray(stop, address=rule.ray_address, workers=rule.workers) as spread:
            yield Workers(spread=spread, measure=Metrics(metrics).update)
        return

    def here(function: Callable[..., Any], shared: tuple[Any, ...], items: Iterable[T]) -> Iterator[tuple[T, Any]]:
        for item in items:
            if stop.asked:
                return
            try:
                yield item, function(*shared, item)
            except Exception as error:
                yield item, error

    yield Workers(spread=here)
