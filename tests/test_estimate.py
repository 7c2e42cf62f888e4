"""Laws: an estimate from all clips is what a run then makes, by reason and by byte; the interval of equal shards has no
width; more GPUs take less time; a plan writes nothing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from jobs import plan
from pipeline.errors import ConfigError
from pipeline.estimate.forecast import (
    OVERHEAD_SECONDS,
    OVERLAP,
    Estimate,
    bottleneck,
    estimate,
    on_gpus,
    on_this_machine,
)
from pipeline.estimate.sample import ShardSample
from pipeline.output.tally import tally
from pipeline.plan.frozen import read_plan
from tests.outputs import CLIPS, make_output
from tests.videos import make_video

pytest_plugins = ["tests.made_outputs"]

SMALL = ["--vae", "tiny", "--num-frames", "9", "--height", "32", "--width", "48", "--clips", "all"]


def sample(**changes: Any) -> ShardSample:
    fields = {"amount": 100.0, "clips": 20, "read_bytes": 100, "encoded": 8, "seconds": 8.0, "latent_bytes": 800}
    return ShardSample(
        **fields | {"decode_seconds": 4.0, "encode_seconds": 16.0, "rejected": Counter(corrupt=2)} | changes
    )


def of(*samples: ShardSample) -> Estimate:
    return estimate(samples, amount=1000.0, shards=10, source_bytes=1000)


def planned(*options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert plan.main([*options, *SMALL, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("kind", ["tars", "table"])
def test_an_estimate_from_all_clips_is_what_a_run_makes(
    source: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = source / "*.tar"
    if kind == "table":
        where = tmp_path / "t.csv"
        (tmp_path / "v.mp4").write_bytes(make_video(num_frames=60, width=96, height=64))
        where.write_text("video\nv.mp4\nmissing.mp4\nv.mp4\n")
    output = make_output(where, tmp_path / "out", CLIPS)
    before = sorted(tmp_path.rglob("*"))
    found = planned("--source", str(where), "--measure", "100", capsys=capsys)
    made = read_plan(output)
    counts = tally(output, sorted(made.done), made.superseded(made.done))
    assert found["clips"]["value"] == pytest.approx(counts.planned)
    assert found["rejected"] == {reason: n / counts.planned for reason, n in counts.rejected.items()}
    assert found["latent_bytes"]["value"] == pytest.approx(counts.latent_bytes)
    assert found["looked_at"] == counts.planned
    assert sorted(tmp_path.rglob("*")) == before


def test_equal_shards_give_an_interval_without_width() -> None:
    found = of(*(sample() for _ in range(5)))
    assert (found.clips.low, found.clips.value, found.clips.high) == (200.0, 200.0, 200.0)
    assert found.rejected == {"corrupt": 0.2}
    assert found.latent_bytes.value == 200 * 0.8 * 100
    assert found.hours.value == pytest.approx(200 * 0.8 / 3600)
    assert (found.decode_seconds, found.encode_seconds) == (0.5, 2.0)


def test_unequal_shards_give_an_interval_around_the_estimate() -> None:
    found = of(*(sample(clips=clips) for clips in (10, 15, 20, 25, 30)))
    assert found.clips.low < found.clips.value == 200.0 < found.clips.high
    assert found.clips.low > 100
    assert found.clips.high < 300


def test_a_forecast_follows_from_the_estimate() -> None:
    found = of(sample(), sample())
    one, two = (on_gpus(found, n, gpu_seconds=0.25, price=2.0, chunk_bytes=10) for n in (1, 2))
    assert one.clips_per_second == OVERLAP / 0.25
    assert one.hours == 2 * two.hours
    assert one.price == two.price == pytest.approx(2.0 * one.gpu_hours)
    assert one.cores_per_gpu == pytest.approx((0.5 + OVERLAP * OVERHEAD_SECONDS) / 0.25)
    assert "the GPUs" in bottleneck(one, 2.2)
    assert "decoding: 1 cores for each GPU keep it busy 47% of the time" in bottleneck(one, 1)
    rate, encoders = on_this_machine(found, 2)
    assert (rate, encoders) == (pytest.approx(2 / (2.5 / OVERLAP + OVERHEAD_SECONDS)), 2)


def test_nothing_to_encode_is_an_error_with_the_reasons() -> None:
    with pytest.raises(ConfigError, match="no clip of 1 shards could be encoded: gone; 2 corrupt"):
        of(sample(encoded=0, fault="gone"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--measure", "0"], "--measure must be above 0, got 0"),
        (["--gpus", "2"], "--gpus needs --gpu-seconds"),
        (["--num-frames", "10"], "nearest: 9 or 13"),
    ],
)
def test_bad_input_is_one_line(
    source: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):  # as a shell sees it
        sys.exit(plan.main(["--source", str(source / "*.tar"), *SMALL, *options]))
    assert message in capsys.readouterr().err


def test_a_source_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--source", str(tmp_path / "*.tar"), *SMALL]) == 2
    assert "nothing to read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["empty.csv", "empty.jsonl"])
def test_a_table_without_a_row_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("video\n" if name.endswith("csv") else "")
    assert plan.main(["--source", str(tmp_path / name), *SMALL]) == 2
    assert "there is no video in it" in capsys.readouterr().err
