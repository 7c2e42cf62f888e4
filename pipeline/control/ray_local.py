"""A Ray of our own: it listens on the loopback, its token and its folder are closed to other users, and every process
of it ends with the run.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader, Config

from pipeline.control import reaper
from pipeline.errors import ConfigError

MARK = "LATENTMILL_RAY"
"""The variable in the environment of every process of this Ray, by which `reaper` knows them."""

LONGEST_FOLDER = 43
"""Longest path, in bytes, of a folder in which Ray can make its sockets: their paths have at most 107 bytes, and Ray
adds 64 (`/session_2026-11-30_22-11-07_537077_4194304/sockets/plasma_store`)."""

INSIDE = "r"
"""The folder of Ray in one that keeps others out."""

PATIENCE = 180
"""Seconds that Ray's head process may take to start, and then its node. Ray itself waits for 30 s, which is too short
where others keep the cores busy."""

SLOW_MACHINE = {"worker_register_timeout_seconds": 600, "agent_register_timeout_ms": 600_000}
"""Ray's own settings: how long a worker (60 s by default) and an agent may take to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a Ray of our own lives."""

    folder: str
    """Of its sockets, logs and spilled objects. Only this user can reach it."""
    environment: dict[str, str]
    """Of its processes: the mark, and the token that they demand from whoever connects."""


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Make a place for a Ray. When the body ends, or this process, no process of this Ray is left, and no file.

    Its folder lies in $RAY_TMPDIR, $TMPDIR or /tmp, inside of one that keeps others out: Ray makes its own folder, and
    that of its sockets, writable for everybody. If the path is too long, Ray gets a short link to it.

    Raises:
        ConfigError: there is no room for it.
    """
    mark = secrets.token_hex(8)
    closed = [_closed_folder(Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp").absolute())]
    folder = closed[0] / INSIDE
    folder.mkdir()
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        closed.append(_closed_folder(Path("/tmp")))
        (closed[1] / INSIDE).symlink_to(folder)
        folder = closed[1] / INSIDE
    # not `-m`: it would import this package, and whatever lies in the working folder
    command = [sys.executable, "-I", "-S", reaper.__file__, f"{MARK}={mark}", *map(str, closed)]
    nowhere = subprocess.DEVNULL
    end = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, start_new_session=True)
    try:
        yield Place(folder=str(folder), environment={MARK: mark, "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    finally:
        end.communicate()  # closes its pipe and waits for it
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")  # forget that Ray wanted a token


def _closed_folder(parent: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="lm", dir=parent))
    except OSError as error:
        raise ConfigError(
            f"Ray needs a folder for its sockets, and none can be made in {parent}: {error.strerror}. Set RAY_TMPDIR "
            f"to a folder of yours with a path of at most {LONGEST_FOLDER - len('/lm12345678/') - len(INSIDE)} bytes"
        ) from None


@contextlib.contextmanager
def starting(ray: Place) -> Iterator[None]:
    """Let a `ray.init` in the body make its processes at this place, on 127.0.0.1 only, and wait for them.

    By default Ray listens on every interface, except on a Mac.
    """
    environment = ray.environment | {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_gcs_server_port_wait_time_s": str(PATIENCE),
    }
    kept: dict[str, str | None] = {name: os.environ.get(name) for name in (*environment, "RAY_AUTH_MODE")}
    is_open, get_node = ray_constants.ENABLE_RAY_CLUSTER, services.get_node
    ray_constants.ENABLE_RAY_CLUSTER, services.get_node = False, _patient(get_node)
    os.environ |= environment
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER, services.get_node = is_open, get_node
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Return Ray's look for its node as one that waits until the node is there."""

    def patiently(*args: Any) -> Any:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return get_node(*args)
            except RuntimeError:  # it is not there yet
                if time.monotonic() > until:
                    raise
            if name := _ended_child():
                raise ChildProcessError(f"{name} has ended while Ray was starting")
            time.sleep(0.1)

    return patiently


def _ended_child() -> str:
    """Return the name of a process of Ray that this process has started and that has ended, or ""."""
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for pid in children.read_text().split():
                head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
                if tail.split()[0] == "Z" and (name := head.partition("(")[2]) in ("gcs_server", "raylet"):
                    return name
    return ""
