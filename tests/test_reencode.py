"""Laws: a clip encoded again from its source gives the stored bytes in the same environment; else it is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.verify import main
from pipeline.verify.reencode import choose
from tests.outputs import CLIPS, Rows, make_output, only_parquet, replace_latent, rewrite, shard
from tests.small import LATENT
from tests.videos import make_video

pytest_plugins = ["tests.made_outputs"]


def test_reencoding_gives_equal_bytes(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(made), "--reencode", "99"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("encoded again: ") and line.endswith(": equal bytes") for line in lines) == 4
    assert lines[-1].endswith("4 clips encoded again")


def test_reencoding_finds_a_latent_that_was_replaced_with_everything_that_follows(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only_parquet(out)

    def change(rows: Rows, footer: dict[str, Any]) -> None:
        replace_latent(rows[1], rows[0]["latent"])

    rewrite(out, name := shard(out), change)
    assert main(["--output", str(out)]) == 0
    assert main(["--output", str(out), "--reencode", "99"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("wrong: data/") for line in lines) == 1
    assert any(f"data/{name}.parquet row 1: latent, encoded again: found other bytes" in line for line in lines)


def test_reencoding_finds_another_fact_of_the_row(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(out, name := shard(out), lambda rows, footer: rows[0].update(caption="another"))
    assert main(["--output", str(out), "--reencode", "99"]) == 1
    assert f"data/{name}.parquet row 0: caption, encoded again: found another, expected a caption" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(("change", "code"), [(1, 0), (0x40, 1)])
def test_in_another_environment_a_small_difference_is_allowed(
    out: Path, change: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    only_parquet(out)
    (run,) = (out / "runs").iterdir()
    run.write_text(run.read_text().replace('"torch": "', '"torch": "0.'))

    def touch(rows: Rows, footer: dict[str, Any]) -> None:
        latent = np.frombuffer(rows[0]["latent"], "<u2") ^ change
        replace_latent(rows[0], latent.tobytes())

    rewrite(out, shard(out), touch)
    assert main(["--output", str(out), "--reencode", "99"]) == code
    printed = capsys.readouterr().out
    assert "note: torch: " in printed
    assert "relative difference" in printed
    assert "<= 0.05" in printed


def test_reencoding_joins_chunks_and_says_where_the_source_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "videos" / "long.mp4"
    video.parent.mkdir()
    video.write_bytes(make_video(num_frames=60, width=96, height=64))
    rules = replace(CLIPS, num_frames=33, fps="24"), replace(LATENT, chunk_windows=1, context="1")
    out = make_output(video.parent, tmp_path / "out", *rules).uri
    assert main(["--output", out, "--reencode", "1"]) == 0
    video.unlink()
    assert main(["--output", out, "--reencode", "1"]) == 1
    assert "encoded again: found" in capsys.readouterr().out


def test_the_choice_is_seeded_and_covers_everything() -> None:
    rows = {"b": 3, "a": 2, "empty": 0}
    assert choose(rows, 99, 0) == {"a": [0, 1], "b": [0, 1, 2]}
    assert choose(rows, 2, 5) == choose(dict(reversed(rows.items())), 2, 5)
    seen = {(name, row) for seed in range(50) for name, chosen in choose(rows, 1, seed).items() for row in chosen}
    assert seen == {("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)}
    assert choose({}, 3, 0) == {}
