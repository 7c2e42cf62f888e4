"""Laws: status tells what stands on disk, of done shards and of those under way; it reads and never writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.status import main
from pipeline.plan.frozen import read_plan
from tests.outputs import CLIPS, make_output

ROOT = Path(__file__).parents[1]

pytest_plugins = ["tests.made_outputs"]


def facts(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["--output", str(out), "--as-json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_status_tells_what_stands_on_disk(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    found = facts(made, capsys)
    assert found["spec"] == json.loads((made / "spec.json").read_text())
    assert {name: found[name] for name in ("output", "shards", "done", "remaining", "clips", "latents", "staged")} == {
        "output": str(made),
        "shards": 2,
        "done": 2,
        "remaining": 0,
        "clips": 6,
        "latents": 4,
        "staged": 0,
    }
    assert found["rejected"] == {"unreadable": 2}
    assert found["latent_bytes"] == 4 * 16 * 3 * 4 * 6 * 2  # C, T', H', W', bfloat16
    assert main(["--output", str(made)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "shards        2 done, 0 remaining",
        "clips         6 = 4 latents + 2 rejected",
        "  unreadable  2",
    ]
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_status_while_a_run_is_going(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = make_output(source / "*.tar", out := tmp_path / "out", CLIPS, limit=1)
    (open_shard,) = read_plan(output).remaining()
    staging = out / "_staging" / open_shard.name
    staging.mkdir(parents=True)
    for name in ("v000000.c000000.k0000of0001.part", "v000000.c000001.verdict.json"):
        (staging / name).write_bytes(b"x")
    found = facts(out, capsys)
    assert (found["shards"], found["done"], found["remaining"], found["staged"]) == (2, 1, 1, 1)
    assert (found["clips"], found["latents"]) == (4, 3)  # of the done shard


def test_watching_ends_when_every_shard_is_done(source: Path, tmp_path: Path) -> None:
    """Watched by a process of its own, while this one commits the last shard."""
    out = tmp_path / "out"
    make_output(source / "*.tar", out, CLIPS, limit=1)
    command = [sys.executable, "-m", "jobs.status", "--output", str(out), "--json", "--watch", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as watching:
        assert watching.stdout
        first = json.loads(watching.stdout.readline())
        make_output(source / "*.tar", out, CLIPS)
        *_, last = watching.stdout
        assert watching.wait(60) == 0
    assert (first["done"], first["remaining"]) == (1, 1)
    assert (json.loads(last)["done"], json.loads(last)["remaining"]) == (2, 0)


def test_where_there_is_no_output_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path)]) == 2
    assert "not an output of latentmill encode" in capsys.readouterr().err
    (tmp_path / "spec.json").write_bytes(b"{")
    assert main(["--output", str(tmp_path)]) == 2
    assert "spec.json is not a spec" in capsys.readouterr().err
