"""Laws: a run that made nothing, or nearly nothing, does not exit as a success; one whose first shards are all refused
for one reason ends early, unless it is told to go on; an output that was whole before keeps its exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs import encode
from pipeline.control.first_shards import MIN_CLIPS, MIN_SHARDS
from pipeline.control.summary import Summary
from pipeline.receipts import ElsewhereReceipt, Receipt
from pipeline.runs.run_records import RunRecord
from pipeline.runs.summary import OK, REJECTED
from pipeline.settings.job import Job
from pipeline.shards import Shard
from pipeline.storage import Storage
from tests.test_driver import Run
from tests.videos import make_video

PER_SHARD = 64
SHARDS = 5


def source(folder: Path, sound: Sequence[int] = (), missing: Sequence[int] = ()) -> Path:
    """A table of SHARDS shards: each row names a file that is no video, but a sound or a missing one where told."""
    (folder / "text.mp4").write_text("no video")
    (folder / "sound.mp4").write_bytes(make_video(num_frames=48, width=96, height=64))
    names = ["text.mp4"] * (SHARDS * PER_SHARD)
    for row in sound:
        names[row] = "sound.mp4"
    for row in missing:
        names[row] = "missing.mp4"
    table = folder / "videos.jsonl"
    table.write_text("".join(json.dumps({"video": str(folder / name)}) + "\n" for name in names))
    return table


class Claimed(Run):
    """A job that begins a shard when the claims give it, as the graph does."""

    def _stream(self, shards: list[Shard]) -> Iterator[Receipt]:
        for shard in shards:
            if self.claims.take(shard.name):
                yield from super()._stream([shard])
            else:
                yield ElsewhereReceipt(shard=shard.name)


def ended(table: Path, **settings: bool) -> Summary:
    return Claimed(table, table.parent / "out", **settings).ended(grace=60)


def test_a_run_whose_first_shards_are_all_refused_for_one_reason_ends_early(tmp_path: Path) -> None:
    summary = ended(source(tmp_path))
    assert summary.done_shards == MIN_SHARDS
    assert summary.rejected == {"unreadable": MIN_SHARDS * PER_SHARD}
    assert f"all {MIN_SHARDS * PER_SHARD} clips were rejected as unreadable" in summary.table()
    assert encode.exit_code(summary, Job(source=("a",), output="out", vae="tiny")) == REJECTED


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        ({}, {"keep_going": True}),
        ({"sound": [PER_SHARD]}, {}),
        ({"missing": [2 * PER_SHARD]}, {}),
    ],
)
def test_it_goes_on_if_told_or_after_one_latent_or_with_several_reasons(
    rows: dict[str, list[int]], settings: dict[str, bool], tmp_path: Path
) -> None:
    summary = ended(source(tmp_path, **rows), **settings)
    assert summary.done_shards == SHARDS
    assert not summary.gave_up


def summary(**changes: object) -> Summary:
    base: dict[str, object] = {"planned_shards": 1, "done_shards": 1, "planned": 6, "latents": 0, "latent_bytes": 0}
    return Summary(**base | {"rejected": {"corrupt": 6}} | changes)  # type: ignore[arg-type]


def job(output: Path, **settings: float) -> Job:
    return Job(source=("a",), output=str(output), vae="tiny", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rejected", "planned", "code"),
    [(6, 6, REJECTED), (1000, 1001, REJECTED), (99, 100, OK), (0, 0, OK)],
)
def test_nothing_or_nearly_nothing_is_no_success(rejected: int, planned: int, code: int, tmp_path: Path) -> None:
    end = summary(planned=planned, latents=planned - rejected, rejected={"corrupt": rejected})
    assert encode.exit_code(end, job(tmp_path)) == code
    assert encode.exit_code(end, job(tmp_path, max_rejected=1.0)) == OK


@pytest.mark.parametrize(
    ("before", "code"),
    [(1.0, OK), (0.5, REJECTED), (None, REJECTED)],
    ids=["the default until now", "stricter", "the default"],
)
def test_an_output_that_was_whole_keeps_its_code(before: float | None, code: int, tmp_path: Path) -> None:
    record = RunRecord(job=job(tmp_path, max_rejected=before), run_id="a", spec_digest="", began=datetime.now(UTC))  # type: ignore[arg-type]
    record.environment = {"torch": "2"}
    record.put(Storage(str(tmp_path)), summary())
    idle = RunRecord(job=job(tmp_path), run_id="b", spec_digest="", began=datetime.now(UTC))
    idle.put(Storage(str(tmp_path)), summary(began_whole=True))
    assert encode.exit_code(summary(began_whole=True), job(tmp_path)) == code


def test_the_numbers_that_the_help_tells() -> None:
    assert (MIN_SHARDS, MIN_CLIPS) == (3, 100)
