"""Laws of --give-up-after: only a source that failed in so many runs is rejected, and a retry takes it up again;
without the flag its shard stays open for ever."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.output.tally import tally
from pipeline.plan.frozen import plan_retries
from pipeline.storage import Storage
from tests.test_driver import Run
from tests.videos import make_video


class Host(ThreadingHTTPServer):
    """A web server that refuses every request until it is given a video."""

    video = b""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        video = self.server.video  # type: ignore[attr-defined]
        self.send_response(200 if video else 403)
        self.send_header("Content-Length", str(len(video)))
        self.end_headers()
        self.wfile.write(video)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(("127.0.0.1", 0), Answer) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web
        web.shutdown()


@pytest.fixture
def table(tmp_path: Path, host: Host) -> Path:
    """A sound video, and one on the host."""
    (tmp_path / "sound.mp4").write_bytes(make_video(num_frames=33, width=96, height=64))
    path = tmp_path / "t.csv"
    path.write_text(f"video\nsound.mp4\n{address(host)}\n")
    return path


def address(host: Host) -> str:
    return f"http://127.0.0.1:{host.server_port}/dead.mp4"


def one_run(table: Path, output: Path, give_up_after: int = 0) -> dict[str, str]:
    return Run(table, output, allow_private=True, give_up_after=give_up_after).go()


def rejections(output: Path) -> list[tuple[str, str]]:
    found = [json.loads(line) for path in (output / "rejected").iterdir() for line in path.read_text().splitlines()]
    return [(rejection["key"], rejection["reason"]) for rejection in found]


def keys(output: Path) -> list[str]:
    return [key for path in (output / "data").iterdir() for key in pq.read_table(path)["key"].to_pylist()]


def test_a_source_that_fails_in_three_runs_is_given_up_and_taken_up_again(
    table: Path, host: Host, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    for _ in range(2):
        (why,) = one_run(table, output, give_up_after=3).values()
        assert "dead.mp4" in why
    assert one_run(table, output, give_up_after=3) == {}
    assert rejections(output) == [(address(host), "unreachable")]
    assert keys(output) == ["sound.mp4"]
    assert not list(Storage(str(output)).list("_staging/"))

    host.video = (tmp_path / "sound.mp4").read_bytes()
    plan_retries(Storage(str(output)), frozenset({"unreachable"}))
    run = Run(table, output, allow_private=True)
    assert run.go() == {}
    counts = tally(run.output, sorted(run.work.done), run.work._plan.superseded(run.work.done))
    assert counts.latents == 2
    assert counts.rejected == {}


def test_a_source_that_comes_back_in_time_is_a_latent(table: Path, host: Host, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert one_run(table, output, give_up_after=2)
    host.video = (tmp_path / "sound.mp4").read_bytes()
    assert one_run(table, output, give_up_after=2) == {}
    assert not (output / "rejected").exists()


def test_without_the_flag_its_shard_stays_open(table: Path, tmp_path: Path) -> None:
    for _ in range(3):
        assert one_run(table, tmp_path / "out")
    assert not list((tmp_path / "out").glob("_staging/*/*.faults*"))
