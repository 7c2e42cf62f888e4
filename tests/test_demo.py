"""Laws: the demo runs through from nothing, shows what it says, and deletes nothing that it did not make."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import demo, encode
from jobs.demo.videos import write_sources
from pipeline.output.tally import tally
from pipeline.plan.frozen import read_plan
from pipeline.verify.whole import verify
from tests.outputs import make_output

ROOT = Path(__file__).parents[1]


def test_the_demos_sources_give_what_the_demo_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages alone, on the sources and with the settings of the demo's three runs."""
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path / "demo")
    expected: list[tuple[list[str], int, dict[str, int]]] = [
        (demo.TARS, 7, {"truncated": 1, "unreadable": 1}),
        (demo.FOLDER, 2, {}),
        (demo.TABLE, 3, {"not_found": 1}),
    ]
    for argv, latents, rejected in expected:
        job = encode.parse(argv)
        output = make_output(job.source[0], job.output, job.clip, job.latent)
        plan = read_plan(output)
        counts = tally(output, sorted(plan.done), plan.superseded(plan.done))
        assert (counts.latents, counts.rejected) == (latents, rejected)
        assert [str(problem) for checked in verify(output) for problem in checked.problems] == []
    rows = pq.read_table(tmp_path / "demo/latents/tars/data").to_pylist()
    assert {row["caption"] for row in rows if row["key"] == "upright"} == {"held upright"}
    sources = {row["key"]: json.loads(row["source_json"]) for row in rows}
    assert (sources["upright"]["display_width"], sources["upright"]["display_height"]) == (96, 160)


def test_the_five_lines_read_a_latent_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path / "demo")
    job = encode.parse(demo.TARS)
    make_output(job.source[0], job.output, job.clip, job.latent, limit=1)
    assert len(demo.READ_BACK.splitlines()) == 5
    exec(demo.READ_BACK, {})
    assert capsys.readouterr().out.startswith("2 drift 'things drift over a texture' (16, 3, 8, 12) torch.bfloat16")


def test_a_folder_of_somebody_elses_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "precious.txt").write_text("mine")
    assert demo.main([]) == 2
    assert "was not made by this demo" in capsys.readouterr().err
    assert (tmp_path / "demo" / "precious.txt").read_text() == "mine"


@pytest.mark.slow
def test_the_demo_runs_through(tmp_path: Path) -> None:
    ray_folder = tempfile.mkdtemp(prefix="lm", dir="/tmp")  # short: a socket's path has at most 107 bytes
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": ray_folder}
    command = [sys.executable, "-m", "jobs.demo"]
    try:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "not for real latents" in lines[0]
    assert sum(line.startswith("$ latentmill ") for line in lines) == 8
    assert sum("this run" in line and ", 0 chunks encoded" in line for line in lines) == 1
    assert sum(line.startswith("encoded again: ") and line.endswith("equal bytes") for line in lines) == 4
    assert sum(line.startswith("ok: 0 problems") for line in lines) == 2
    assert any(line.startswith("7 drift 'things drift") for line in lines)
    assert (tmp_path / "demo/report.html").stat().st_size > 50_000
