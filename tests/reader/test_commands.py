"""`latentmill ls`, `head` and `cat` say what is there, and say what is wrong in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import latentmill
from jobs import cat, head, ls


def test_ls_counts_rows_and_shapes(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ls.main([str(output)]) == 0
    shown = capsys.readouterr().out
    assert "rows        24, 18 with a caption" in shown
    assert "2x2x4x3             4x32x24                              9" in shown
    assert latentmill.open(output).digest in shown


def test_head_shows_rows_as_text_and_as_json(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert head.main([str(output), "-n", "2"]) == 0
    assert "caption     caption 1 of 000000\n" in capsys.readouterr().out
    assert head.main([str(output), "--rows", "99", "--json", "--columns", "extra_json", "caption"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 24
    assert rows[3] == {
        "id": latentmill.open(output)[3]["id"],
        "extra_json": '{"n":3}',
        "caption": "caption 3 of 000000",
        "latent": "2x1x2x3 bfloat16",
    }


@pytest.mark.parametrize("by_id", [False, True])
def test_cat_writes_one_latent(output: Path, tmp_path: Path, by_id: bool) -> None:
    want = latentmill.open(output)[4]
    row = want["id"][:20] if by_id else "4"
    assert cat.main([str(output), row, "--to", str(tmp_path / "x.npy")]) == 0
    assert np.array_equal(np.load(tmp_path / "x.npy"), want["latent"].float().numpy())
    assert cat.main([str(output), row, "--to", str(tmp_path / "x.pt")]) == 0
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    assert torch.equal(saved["latent"], want["latent"])
    assert saved["caption"] == want["caption"]


@pytest.mark.parametrize(
    ("row", "to", "says"),
    [
        ("24", "x.npy", "there is no row 24: .* has 24"),
        ("zz", "x.npy", "no rows have an id that begins with 'zz'"),
        ("1", "x.txt", "--to must end in .npy or .pt, got"),
    ],
)
def test_cat_says_what_is_wrong(
    output: Path, tmp_path: Path, row: str, to: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cat.main([str(output), row, "--to", str(tmp_path / to)]) == 2
    import re

    assert re.search(f"latentmill cat: {says}", capsys.readouterr().err)


def test_what_is_no_output_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main in (ls.main, head.main):
        assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("is not an output of latentmill") == 2
