"""Law: whatever signal comes at whatever moment, once or twice, to the driver or to its whole group: the run ends with
the documented code and a summary, runs/ tells of what had begun, and nobody sees a traceback.

`tests.held` is a job that stands still at the moment, so that only the end of the grace period can end it.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from pathlib import Path

import pytest

from pipeline.runs.stop import ONE_SIGNAL_SECONDS, STATUS, Stop
from tests.driver import Driver
from tests.held import MOMENTS
from tests.test_run import make_tar
from tests.videos import make_video

MOMENTS_AND_TIMES = [(moment, times) for moment in MOMENTS for times in (1, 2)]
AT_ONCE = {"before Ray", "while Ray starts"}
"""Moments at which nothing is open: the first signal ends the run."""


def stop(folder: Path, moment: str, name: str, times: int, *, to_group: bool) -> None:
    video = make_video(num_frames=33, width=96, height=64) if moment == "in the stream" else b"not a video"
    make_tar(folder / "a.tar", {"a": video})
    mark, output = folder / "mark", folder / "out"
    order = {"source": f"{folder}/a.tar", "output": f"{output}", "moment": moment, "mark": f"{mark}"}
    driver = Driver([json.dumps(order | {"grace": "300" if times == 2 else "0.1"})], module="tests.held")
    begun = driver.starts_processes if moment == "while Ray starts" else mark.exists
    driver.signal_when(begun, signal.Signals[name], to_group=to_group)
    if times == 2:
        soonest = time.monotonic() + 2 * ONE_SIGNAL_SECONDS
        heard = "finishing what is open"
        driver.signal_when(
            lambda: heard in driver.printed() and time.monotonic() > soonest, signal.Signals[name], to_group=to_group
        )
    committed = moment == "sealing"
    printed = driver.finish(0 if committed else STATUS[name])
    assert "Traceback" not in printed, printed
    assert "un the same command again" in printed
    runs = list(output.glob("runs/*"))
    if moment == "before Ray":
        assert not runs
        return
    assert re.search(rf"^shards +{int(committed)} of 1$", printed, re.MULTILINE), printed
    (run,) = runs
    summary = json.loads(run.read_text())["summary"]
    assert summary["stopped"] == name
    assert summary["done_shards"] == committed
    assert not list(output.glob("_claims/*"))


@pytest.mark.slow
@pytest.mark.parametrize("to_group", [False, True], ids=["driver", "group"])
@pytest.mark.parametrize("name", STATUS)
@pytest.mark.parametrize(("moment", "times"), [(m, t) for m, t in MOMENTS_AND_TIMES if t == 1 or m not in AT_ONCE])
def test_any_signal_at_any_moment(moment: str, times: int, name: str, to_group: bool, tmp_path: Path) -> None:
    stop(tmp_path, moment, name, times, to_group=to_group)


def test_a_signal_that_comes_twice_at_once_is_one() -> None:
    """As `timeout` sends it: to the process, and to its group."""
    is_over = True
    with Stop(3600) as stop, stop.limited():
        os.kill(os.getpid(), signal.SIGTERM)
        stop.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)
        select.select([], [], [], 0.1)  # longer than the alarm that ends a grace period
        is_over = False
    assert stop.by == "SIGTERM"
    assert not is_over
