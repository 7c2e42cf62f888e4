"""Law: a command ends with the status that it computed, each time, whatever the threads of its libraries do at the end.

The commands run several at a time, so that both cores are busy. LATENTMILL_EXIT_RUNS says how many runs each gets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.outputs import CLIPS, make_output
from tests.small import LATENT
from tests.test_run import make_tar
from tests.videos import make_video

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3"]

ROOT = Path(__file__).parents[1]
RUNS = int(os.environ.get("LATENTMILL_EXIT_RUNS", "3"))
AT_A_TIME = 3


def statuses(*arguments: str) -> Counter[int]:
    """How often the command ended with each status."""

    def once(_: int) -> int:
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return Counter(pool.map(once, range(RUNS)))


@pytest.fixture
def source(tmp_path: Path) -> str:
    make_tar(tmp_path / "a.tar", {"a": make_video(num_frames=48, width=96, height=64)})
    return str(tmp_path / "a.tar")


def encode(source: str, output: str) -> list[str]:
    """The job that made the output: nothing is left of it."""
    clip = [f"--{name}={getattr(CLIPS, name.replace('-', '_'))}" for name in ("num-frames", "height", "width", "fps")]
    fixed = ["--vae=tiny", "--clips=all", "--dtype=bfloat16"]
    return ["encode", f"--source={source}", f"--output={output}", *fixed, *clip]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["status", "verify", "encode"])
def test_on_a_disk(command: str, source: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    make_output(source, output, CLIPS, LATENT)
    arguments = encode(source, output) if command == "encode" else [command, f"--output={output}"]
    assert statuses(*arguments) == {0: RUNS}


@pytest.mark.slow
def test_encode_to_s3(source: str, s3: S3) -> None:
    make_output(source, s3.uri("out"), CLIPS, LATENT)
    assert statuses(*encode(source, s3.uri("out"))) == {0: RUNS}
