"""Strikes: three unfinished attempts make a suspect; what was ended for another's sake is none."""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline.control.ray_objects import RemoteStrikes, ended_for_memory
from pipeline.guard.alone import MEMORY_SHARE, DiedAloneError, _memory, alone, within_memory
from pipeline.guard.strikes import MAX_EXCUSED, MAX_STRIKES, Strikes
from tests.small import HEALTHY


def test_unfinished_attempts_count_and_finished_ones_do_not() -> None:
    strikes = Strikes()
    assert [strikes.begin("a") for _ in range(2)] == [0, 1]
    strikes.end("a")
    assert [strikes.begin("a") for _ in range(MAX_STRIKES)] == [0, 1, 2]
    assert strikes.suspects("") == {"a"}
    strikes.end("a")
    assert strikes.suspects("") == {"a"}, "a retry must decide as the first try did"
    assert not strikes.suspects("b")


def test_strikes_below_a_key_are_told() -> None:
    strikes = Strikes()
    strikes.begin("video/clip")
    assert strikes.begin("video/") == 1
    assert strikes.begin("other/") == 0


def test_excused_processes_strike_nothing() -> None:
    strikes = Strikes(excused={"hungry neighbour"}.__contains__)
    for _ in range(2 * MAX_STRIKES):
        assert strikes.begin("a", "hungry neighbour") == 0
    assert not strikes.suspects("")
    assert [strikes.begin("a", "of its own") for _ in range(MAX_STRIKES)] == [0, 1, 2]
    assert strikes.suspects("") == {"a"}


def test_who_is_excused_again_and_again_becomes_a_suspect_in_the_end() -> None:
    """It may be this very clip that eats the memory, and the run must end."""
    strikes = Strikes(excused=lambda process: True)
    for _ in range(MAX_EXCUSED + MAX_STRIKES):
        assert not strikes.suspects("")
        strikes.begin("hungry")
    assert strikes.suspects("") == {"hungry"}
    strikes = Strikes(excused=lambda process: True)
    for _ in range(20):
        strikes.begin("fine")
        strikes.end("fine")
    assert not strikes.suspects("")


def test_a_child_that_cannot_load_its_call_is_no_verdict_on_the_clip() -> None:
    with pytest.raises(RuntimeError, match="could not load"):
        alone(HEALTHY, Unloadable())


def test_what_eats_all_memory_alone_dies_of_it_and_its_parent_does_not() -> None:
    with pytest.raises(DiedAloneError, match=f"signal {signal.SIGKILL}"):
        alone(HEALTHY, within_memory, bytearray, int(_memory() * MEMORY_SHARE) + 1)
    assert len(alone(HEALTHY, within_memory, bytes, 1 << 20)) == 1 << 20


def test_a_lower_limit_that_is_there_already_is_kept() -> None:
    assert alone(HEALTHY, limited_call) == 1 << 30


def limited_call() -> int:
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
    within_memory(len, b"")
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


class Unloadable:
    """Pickles, and raises where it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return importlib.import_module, ("no_such_module_anywhere",)

    def __call__(self) -> None: ...


def memory(kind: str) -> int:
    """Bytes, by the kernel's account."""
    try:
        (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(f"{kind}:"))
    except OSError:
        pytest.skip("the kernel gives no account of its memory")
    return int(line.split()[1]) * 1024


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A Ray whose memory monitor acts when the machine's use grows by so many bytes."""
    total, available = memory("MemTotal"), memory("MemAvailable")
    spare = max(total // 25, 1 << 29)
    if available < 2 * spare:
        pytest.skip("too little memory to play with")
    folder = tempfile.mkdtemp(prefix="lm")  # sockets in it: paths are limited to 107 bytes
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("RAY_memory_usage_threshold", str(1 - (available - spare) / total))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    ray.init(address="local", num_cpus=1, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
    yield 2 * spare
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_rays_memory_monitor_strikes_nothing_and_a_crash_does(short_of_memory: int, tmp_path: Path) -> None:
    """One attempt: ended by the monitor as often as would make a suspect, then by itself, then it succeeds. Each time
    the cause of the last death is known when the next try begins."""
    guard = RemoteStrikes()
    tries = tmp_path / "tries"

    @ray.remote(num_cpus=1, max_retries=-1)
    def attempt() -> list[list[object]]:
        told = json.loads(tries.read_text()) if tries.exists() else []
        worker = ray.get_runtime_context().get_worker_id()
        for_memory = bool(told) and ended_for_memory(told[-1][0])
        told.append([worker, for_memory, guard.begin("clip")])
        tries.write_text(json.dumps(told))
        if len(told) <= MAX_STRIKES:
            eaten = []
            for _ in range(short_of_memory >> 24):
                eaten.append(os.urandom(1 << 24))
            time.sleep(60)  # until the monitor looks
        if len(told) == MAX_STRIKES + 1:
            os.abort()
        return told

    _, causes, standing = zip(*ray.get(attempt.remote(), timeout=240), strict=True)
    assert causes == (False, *[True] * MAX_STRIKES, False)
    assert standing == (*[0] * (MAX_STRIKES + 1), 1)
