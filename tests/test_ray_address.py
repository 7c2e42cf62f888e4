"""Law: a cluster that does not answer is one clear line within a stated time, and a signal ends the wait."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

JOIN = """
import signal, sys, threading, os
import vae
from pipeline.control import ray_cluster, ray_start
from pipeline.runs.stop import GraceOverError, Stop, leave
from pipeline.errors import ConfigError
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job, Workers

ray_start.CONNECT_SECONDS, signalled = float(sys.argv[2]), sys.argv[3] == "signalled"
workers = Workers(ray_address=sys.argv[1], object_store_gb=0.01 if sys.argv[1] == "local" else None)
clip = ClipRule(num_frames=9, height=64, width=96)
job = Job(source=("a",), output="b", vae="tiny", clip=clip, workers=workers)
if signalled:
    threading.Timer(1, os.kill, [os.getpid(), signal.SIGTERM]).start()
try:
    with Stop(300) as stop, ray_cluster.ray_for(job, vae.load_vae("tiny").info, stop):
        print("joined")
except ConfigError as error:
    print("refused:", error)
except GraceOverError:
    print("stopped by", stop.by)
leave(0)
"""


def join(address: str, patience: float, how: str = "") -> str:
    environment = os.environ | {"RAY_TMPDIR": tempfile.mkdtemp(prefix="lm")}
    command = [sys.executable, "-c", JOIN, address, str(patience), how]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=600)
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture
def silent() -> Iterator[str]:
    """An address at which nobody answers: a port that is taken, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.slow
def test_a_cluster_that_does_not_answer(silent: str) -> None:
    assert join(silent, 2) == f"refused: ray-address {silent!r}: no answer in 2 s\n"


@pytest.mark.slow
def test_a_signal_ends_the_wait(silent: str) -> None:
    assert join(silent, 3600, "signalled") == "stopped by SIGTERM\n"


@pytest.mark.slow
def test_an_object_store_that_ray_refuses() -> None:
    printed = join("local", 60)
    assert printed.startswith("refused: ")
    assert "object store" in printed
    assert len(printed.splitlines()) == 1
