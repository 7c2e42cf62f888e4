"""Law: rows of `--fps native` have the rate and the end that follow from the times of their frames."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import latentmill
from jobs import ls, report
from jobs.report.page import page
from latentmill.index.rates import with_rates
from tests.outputs import make_output
from tests.small import CLIP
from tests.sources import make_tar
from tests.videos import make_video


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of a video at 12 frames a second."""
    where = tmp_path_factory.mktemp("native")
    (where / "one.tar").write_bytes(make_tar([("a.mp4", make_video(num_frames=24, fps=12))]))
    make_output(where / "one.tar", where / "out", clip=replace(CLIP, fps="native", clips="all"))
    return where / "out"


@pytest.mark.parametrize("is_sealed", [True, False])
def test_native_rows_have_a_rate_and_an_end(native: Path, tmp_path: Path, is_sealed: bool) -> None:
    out = Path(shutil.copytree(native, tmp_path / "out"))
    if not is_sealed:
        (out / "index.parquet").unlink()
    (path,) = (out / "data").iterdir()
    stored = pq.read_table(path).to_pylist()
    assert {row["fps"] for row in stored} == {row["end_sec"] for row in stored} == {None}
    latents = latentmill.open(out)
    assert "timestamps_sec" not in latents.index.schema.names
    for row, latent in zip(stored, (latents[i] for i in range(len(latents))), strict=True):
        assert latent["fps"] == pytest.approx(12)
        assert latent["end_sec"] == pytest.approx(row["timestamps_sec"][0] + row["num_frames"] / 12)
    batch = next(iter(latents.loader(batch_size=2)))
    assert not batch["fps"].isnan().any()
    assert not batch["end_sec"].isnan().any()
    with_times = latentmill.open(out, columns=["fps", "timestamps_sec"])[0]
    assert with_times["fps"] == pytest.approx(12)
    assert len(with_times["timestamps_sec"]) == stored[0]["num_frames"]
    assert latents.digest == latentmill.open(out, columns=["id"]).digest


def test_an_index_that_was_saved_has_them_too(native: Path, tmp_path: Path) -> None:
    latentmill.open(native).save_index(tmp_path / "pinned.parquet")
    assert latentmill.open(native, index=tmp_path / "pinned.parquet")[0]["fps"] == pytest.approx(12)


def test_filters_see_them_and_the_report_says_how_much_video(
    native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = latentmill.open(native)
    assert len(latents.where(pc.field("fps") > 11)) == len(latents)
    assert "0.0 s" not in page(report.Report(output=str(native), to=tmp_path / "x.html", clips=0)).split("of video")[0]
    assert ls.main([str(native)]) == 0


def test_the_step_is_the_median_of_those_between_frames() -> None:
    """Repeated frames, one gap, one frame, none: against exact fractions."""
    times = [[0, 1, 2, 3], [5], [], [1, 1, 2, 3, 13], [2, 2, 2], [0.5, 1.0]]
    rows = pa.table(
        {
            "timestamps_sec": pa.array([[float(t) for t in some] for some in times], pa.list_(pa.float64())),
            "fps": pa.array([None] * 5 + [30.0]),
            "end_sec": pa.array([None] * 6, pa.float64()),
        }
    )
    found = with_rates(rows.slice(0, 6)).to_pylist()
    assert [row["fps"] for row in found] == [1.0, None, None, float(1 / Fraction(1)), None, 30.0]
    assert [row["end_sec"] for row in found] == [4.0, None, None, 14.0, None, 1.5]
    assert not any(row["fps"] is not None and math.isnan(row["fps"]) for row in found)
    assert with_rates(rows.slice(3, 2)).to_pylist() == found[3:5]
