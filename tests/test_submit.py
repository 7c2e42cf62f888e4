"""Laws of `latentmill submit`, on a real head with its dashboard: a job makes the bytes of a local run; its exit code
is handed on; a job that was stopped, or whose head was lost and comes back, is submitted again and resumes.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import submit
from pipeline.runs.summary import CONFIG
from tests.driver import Driver, descendants
from tests.head import Head
from tests.test_run import make_tar
from tests.videos import make_video

SMALL = ["--vae", "tiny", "--num-frames", "9", "--height", "32", "--width", "48", "--fps", "8", "--clips", "all"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attempts", "0", "--"], "--attempts must be at least 1, got 0"),
        (["--", "--ray-address", "auto"], "--ray-address cannot be given: --address names the cluster"),
        (["--address", "http://127.0.0.1:1", "--"], "--address http://127.0.0.1:1: "),
        (["--", "--num-frames", "none"], "--num-frames"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = submit.main([*arguments, "--source", "a.tar", "--output", "out", "--vae", "tiny"])
    except SystemExit as parser:
        code = parser.code
    assert code == CONFIG
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


@pytest.fixture
def head() -> Iterator[Head]:
    pytest.importorskip("opencensus", reason="jobs need Ray's dashboard: the extra `cluster`")
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    with Head(*ports) as made:
        yield made


@pytest.fixture
def tars(tmp_path: Path) -> str:
    for name in "abcd":
        make_tar(tmp_path / f"{name}.tar", {"one": make_video(num_frames=60, width=96, height=64), "two": b"no video"})
    return f"{tmp_path}/*.tar"


def data(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (output / "data").iterdir()}


def start(head: Head, *options: str) -> Driver:
    return Driver(["--address", head.dashboard, "--python", sys.executable, "--", *SMALL, *options], "jobs.submit")


@pytest.mark.slow
def test_a_job_makes_the_bytes_of_a_local_run_and_hands_on_its_code(head: Head, tars: str, tmp_path: Path) -> None:
    job = start(head, "--source", tars, "--output", f"{tmp_path}/job")
    printed = job.finish(0)
    assert re.search(r"^latents +8", printed, re.MULTILINE), printed
    assert re.search(r"^shards 4/4", printed, re.MULTILINE), "the progress line is followed"

    refused = start(head, "--source", f"{tmp_path}/none/*.tar", "--output", f"{tmp_path}/other")
    assert "has nothing to read" in refused.finish(CONFIG)

    Driver([*SMALL, "--source", tars, "--output", f"{tmp_path}/here", "--object-store-gb", "0.1"]).finish(0)
    assert data(tmp_path / "job") == data(tmp_path / "here") != {}


@pytest.mark.slow
def test_ray_job_submit_runs_encode_where_latentmill_is_installed(head: Head, tars: str, tmp_path: Path) -> None:
    options = [*SMALL, "--source", tars, "--output", f"{tmp_path}/job", "--ray-address", "auto"]
    entry = [sys.executable, "-m", "jobs.cli", "encode", *options]
    Driver(["job", "submit", "--address", head.dashboard, "--", *entry], "ray.scripts.scripts").finish(0)
    assert len(data(tmp_path / "job")) == 4


@pytest.mark.slow
def test_a_job_that_is_stopped_or_loses_its_head_is_submitted_again(head: Head, tars: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = start(head, "--source", tars, "--output", str(output))

    def jobs() -> list[int]:
        """The jobs themselves, not the shells that start them."""
        lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in descendants(head.pid)}
        return [pid for pid, line in lines.items() if line.exists() and b"\0-m\0jobs.encode\0" in line.read_bytes()]

    job.wait_until(lambda: (output / "spec.json").exists())  # the stream begins
    os.kill(max(jobs()), signal.SIGTERM)
    job.wait_until(lambda: "ended with 75" in job.printed())
    job.wait_until(lambda: bool(list(output.glob("_claims/*"))))
    head.restart()
    printed = job.finish(0)
    assert "ended without an exit code" in printed
    assert len(re.findall(r"^job raysubmit_\w+ on", printed, re.MULTILINE)) >= 3
    assert len(data(output)) == 4
