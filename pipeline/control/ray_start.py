"""Start a Ray of our own, or join one, and end it."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from pipeline.control import ray_local
from pipeline.errors import ConfigError, EncoderError
from pipeline.runs.stop import GraceOverError, Stop
from pipeline.settings.job import local_cpus

log = logging.getLogger(__name__)

CONNECT_SECONDS = 60.0
"""How long a cluster may take to answer."""

START_SECONDS = 600.0
"""How long a try to start a local Ray may take. It takes 5 s on an idle machine and minutes on a busy one."""

SLOW_SECONDS = 30.0
"""When a start is said to be slow."""

HOPELESS = (ValueError, PermissionError, FileNotFoundError, NotADirectoryError)
"""Errors that the next start would meet again: a setting that Ray refuses, a place that it cannot use."""


@contextlib.contextmanager
def running(options: dict[str, Any], stop: Stop, *, ours: bool) -> Iterator[None]:
    """Run the body with a local Ray, which gets a second try, or joined to a cluster.

    Raises:
        ConfigError: no cluster answers, or a local Ray can never start here.
        EncoderError: the local Ray does not start.
        GraceOverError: a signal asked for a stop before Ray had started.
    """
    if not ours:
        with _ray(options, stop, None):
            yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_own_ray(options, stop))
        except EncoderError as error:
            log.warning("%s. %s. Trying once more", error, _load())
            stack.enter_context(_own_ray(options, stop))
        yield


@contextlib.contextmanager
def _own_ray(options: dict[str, Any], stop: Stop) -> Iterator[None]:
    with ray_local.place() as place:
        system = options.get("_system_config", {}) | ray_local.SLOW_MACHINE
        options = options | {"include_dashboard": False, "_temp_dir": place.folder, "_system_config": system}
        with _ray(options, stop, place):
            yield


@contextlib.contextmanager
def _ray(options: dict[str, Any], stop: Stop, place: ray_local.Place | None) -> Iterator[None]:
    """Start Ray at this place, or join one, and end it.

    It lives in a thread: in the main thread it would take over SIGTERM, and its wait has no limit.
    """
    started: Future[None] = Future()
    ended: Future[None] = Future()
    over = threading.Event()

    def start() -> None:
        _thread.starts_ray = place is not None
        try:
            ray.init(**options)
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(None)
        over.wait()  # the kernel ends the processes of a local Ray with the thread that started them
        try:
            if not started.exception():
                ray.shutdown()
        finally:
            ended.set_result(None)

    try:
        with _quiet() as aloud, ray_local.starting(place) if place else contextlib.nullcontext():
            threading.Thread(target=start, daemon=True).start()
            if place and not stop.done(started, SLOW_SECONDS) and not stop.asked:
                with aloud():
                    log.warning("Ray is still starting after %g s: %s", SLOW_SECONDS, _load())
            stop.done(started, START_SECONDS if place else CONNECT_SECONDS)
        if stop.asked:
            raise GraceOverError
        _check(started, options["address"], ours=place is not None)
        yield
    finally:
        over.set()
        if started.done():
            stop.sit_out(ended)


def _check(started: Future[None], address: str, *, ours: bool) -> None:
    """Raise the error of a start that failed, or was too slow."""
    if not started.done():
        seconds = START_SECONDS if ours else CONNECT_SECONDS
        raise (EncoderError if ours else ConfigError)(f"ray-address {address!r}: no answer in {seconds:g} s")
    try:
        started.result()
    except Exception as error:  # a bare one where its processes do not come up
        first_line = str(error).strip().partition("\n")[0]
        kind = EncoderError if ours and not isinstance(error, HOPELESS) else ConfigError
        raise kind(f"ray-address {address!r}: Ray says: {first_line}") from error


def _load() -> str:
    """Return how busy this machine is, in words."""
    return f"The load of this machine is {os.getloadavg()[0]:.0f} on {local_cpus()} cores"


_thread = threading.local()


def _own_group() -> None:
    """Move a process of Ray, just forked, to a process group of its own: a signal from the terminal must not end it
    while the driver finishes open shards."""
    if getattr(_thread, "starts_ray", False):
        os.setpgrp()


os.register_at_fork(after_in_child=_own_group)


@contextlib.contextmanager
def _quiet() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Silence Ray while it starts, and start no worker through `uv run`, which lacks our packages (ray#50961). Yield a
    context in which stderr speaks."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)  # logs in full what is then raised
    warnings.filterwarnings("ignore", module=r"ray\.")
    uses_uv, ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV, False
    kept = os.dup(2)  # the C++ side announces its log level on stderr, whatever the level

    @contextlib.contextmanager
    def aloud() -> Iterator[None]:
        os.dup2(kept, 2)
        yield
        os.dup2(nowhere.fileno(), 2)

    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield aloud
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = uses_uv
