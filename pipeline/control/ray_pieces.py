"""Run a function on many items, each as a task of Ray, with a bounded number under way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray

from pipeline.control.ray_cluster import ray_for_tasks
from pipeline.control.ray_objects import answer
from pipeline.control.spread import Spread
from pipeline.runs.stop import Stop

T = TypeVar("T")

TASK_RETRIES = 3
"""How often a task is tried again whose worker died."""
LOOK_SECONDS = 1.0
"""How often the driver looks whether a signal asked for a stop."""


@contextlib.contextmanager
def on_ray(stop: Stop, *, address: str, workers: int) -> Iterator[Spread]:
    """Start a Ray on this machine (`local`), or join the cluster at the address. Yield how to spread calls over it.

    After a signal no task is started any more, and those under way are waited for.

    Args:
        workers: tasks at a time; 0: one for each CPU.

    Raises:
        ConfigError: no cluster answers.
    """
    with ray_for_tasks(address, stop) as cpus:

        def spread(
            function: Callable[..., Any], shared: tuple[Any, ...], items: Iterable[T]
        ) -> Iterator[tuple[T, Any]]:
            call = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(function).remote
            waiting, running = iter(items), dict[Any, T]()
            while True:
                while len(running) < (workers or cpus) and not stop.asked and (item := next(waiting, None)) is not None:
                    running[call(*shared, item)] = item
                if not running:
                    return
                for reference in ray.wait(list(running), timeout=LOOK_SECONDS)[0]:
                    item = running.pop(reference)
                    try:
                        result = answer(reference)
                    except Exception as error:
                        result = error
                    yield item, result

        yield spread
