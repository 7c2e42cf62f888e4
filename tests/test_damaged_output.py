"""Law: what can be made again is checked before it is believed; what cannot is said in one line of our own errors."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import latentmill
from jobs import report, status
from jobs.report.facts import rejections, runs
from jobs.report.page import page
from pipeline.errors import LatentmillError
from pipeline.output.derived import restored
from pipeline.output.tally import tally
from pipeline.plan.frozen import read_plan
from pipeline.runs.claims import Owner
from pipeline.storage import Storage
from tests.outputs import CLIPS, make_output
from tests.reader.damage import flipped
from tests.sources import make_tar
from tests.videos import make_video

DERIVED = ("index.parquet", "index", "rejected")
KINDS = (*DERIVED, "runs", "plan", "spec.json")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of two videos, and one that is too short."""
    where = tmp_path_factory.mktemp("sound")
    lengths = {"a": 30, "b": 4, "c": 20}
    videos = [(f"{name}.mp4", make_video(num_frames=length, fps=12)) for name, length in lengths.items()]
    (where / "one.tar").write_bytes(make_tar(videos))
    make_output(where / "one.tar", where / "out", clip=replace(CLIPS, short="reject"))
    return where / "out"


def seen(out: Path, cache: Path) -> dict[str, Any]:
    """What a reader, a status and a report make of an output; an error of ours is a line."""
    output = Storage(str(out))

    def status_of() -> Any:
        return {name: value for name, value in status.status(output).items() if name != "output"}

    def rejected() -> Any:
        plan = read_plan(output)
        return rejections(output, plan, tally(output, sorted(plan.done), plan.superseded(plan.done)))

    asked = {
        "rows": lambda: latentmill.open(out, cache=cache).to_arrow().to_pylist(),
        "status": status_of,
        "rejections": rejected,
        "runs": lambda: runs(output),
    }
    found: dict[str, Any] = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except LatentmillError as error:
            found[name] = f"error: {error}"
    assert not any("\n" in one for one in found.values() if isinstance(one, str))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(500), marks=pytest.mark.slow)])
def test_no_flip_gives_other_rows_or_a_stray_exception(sound: Path, tmp_path: Path, kind: str, seeds: range) -> None:
    want = seen(sound, tmp_path / "cache")
    out = Path(shutil.copytree(sound, tmp_path / "out"))
    files = [out / kind] if (out / kind).is_file() else sorted((out / kind).iterdir())
    for seed in seeds:
        rng = random.Random(seed)
        file = rng.choice(files)
        whole = file.read_bytes()
        file.write_bytes(flipped(whole, rng))
        found = seen(out, tmp_path / f"cache{seed}")
        shutil.rmtree(tmp_path / f"cache{seed}", ignore_errors=True)
        if kind != "spec.json":
            assert found["rows"] == want["rows"], f"seed {seed}"
        if kind in DERIVED:
            assert found == want, f"seed {seed}"
            (shard,) = [path.stem for path in (out / "data").glob("*.parquet")]
            assert restored(Storage(str(out)), shard)[1] == restored(Storage(str(sound)), shard)[1]
        if kind == "plan":
            assert found["status"] == want["status"] or "Restore it" in found["status"]
        file.write_bytes(whole)


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(500), marks=pytest.mark.slow)])
def test_a_damaged_claim_has_no_owner_or_one_that_can_be_asked(seeds: range) -> None:
    owner = Owner.this_process("run")
    whole = json.dumps({name: getattr(owner, name) for name in Owner.__slots__}).encode()
    for seed in seeds:
        found = Owner.parse(flipped(whole, random.Random(seed)))
        assert found is None or found.is_dead() in (True, False)


@pytest.mark.parametrize("damage", ["rejected", "runs", "plan"])
def test_a_report_of_a_damaged_output_is_written(sound: Path, tmp_path: Path, damage: str) -> None:
    out = Path(shutil.copytree(sound, tmp_path / "out"))
    for file in (out / damage).iterdir():
        file.write_bytes(b'{"x": \xff') if damage != "plan" else file.unlink()
    html = page(report.Report(output=str(out), to=tmp_path / "x.html", clips=1, decode=False))
    says = {"rejected": "too_short", "runs": "this record is damaged", "plan": "the plan does not name the shard"}
    assert says[damage] in html
