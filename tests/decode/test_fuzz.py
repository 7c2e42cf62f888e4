"""Whatever the bytes: no hang, no unforeseen error, and every file accounted for."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

DEADLINE_SECONDS = 900.0
"""For one file of a few kilobytes, on a machine that does other things as well."""


def run(seed: int, count: int) -> Counter[str]:
    """Outcomes of `count` mutated files in worker processes; a dead one is replaced and its file counted."""
    outcomes: Counter[str] = Counter()
    first = 0
    while first < count:
        first = _run_worker(seed, first, count, outcomes)
    return outcomes


def _run_worker(seed: int, first: int, stop: int, outcomes: Counter[str]) -> int:
    """Run one worker until it ends; returns the number to go on with."""
    command = [sys.executable, "-m", "tests.decode.fuzz", str(seed), str(first), str(stop)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stderr is not None
        lines: queue.Queue[str | None] = queue.Queue()
        errors: list[str] = []
        threading.Thread(target=_pump, args=(worker.stdout, lines), daemon=True).start()
        drain = threading.Thread(target=lambda stream: errors.extend(stream), args=(worker.stderr,), daemon=True)
        drain.start()
        done = first
        while True:
            try:
                line = lines.get(timeout=DEADLINE_SECONDS)
            except queue.Empty:
                worker.kill()
                outcomes[f"HANG of file {done}"] += 1
                return done + 1
            if line is None:
                break
            message = json.loads(line)
            if "outcome" in message:
                outcomes[message["outcome"]] += 1
                done = message["number"] + 1
        worker.wait()
        drain.join()
        if worker.returncode == 0:
            return stop
        outcomes[f"DEATH of file {done}, exit {worker.returncode}: {''.join(errors)[-300:]}"] += 1
        return done + 1


def _pump(stream: object, lines: queue.Queue[str | None]) -> None:
    for line in stream:  # type: ignore[attr-defined]
        lines.put(line)
    lines.put(None)


@pytest.mark.parametrize(("seed", "count"), [(1, 60), pytest.param(2, 2500, marks=pytest.mark.slow)])
def test_mutated_files_are_decoded_or_refused(seed: int, count: int) -> None:
    outcomes = run(seed, count)
    assert sum(outcomes.values()) == count
    assert not [outcome for outcome in outcomes if outcome.startswith(("HANG", "DEATH"))]
    assert outcomes["ok"] > count // 20
    assert len(outcomes) > 4
