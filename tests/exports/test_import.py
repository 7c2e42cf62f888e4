"""Laws of an import: what others stored becomes rows with the same values, every reading command takes the result, no
file is lost silently, and encode refuses to go on with it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentmill
from jobs import encode, ls, report, stats, verify
from jobs import import_latents as command
from latentmill.format import STATISTICS
from pipeline.control.spread import SpreadRule
from pipeline.control.summary import Summary
from pipeline.errors import ConfigError
from pipeline.export.families import WAN_21
from pipeline.export.import_job import ImportJob
from pipeline.export.import_run import run_import
from pipeline.export.plan import ExportJob
from pipeline.export.run import export
from tests.exports.made import MEAN, STD, rows_of, vae_of, write_family
from tests.exports.test_trainers import exported

HERE = SpreadRule(workers=1)
WAN_SCALE = ",".join(str(1 / value) for value in STD * 4)
WAN_SHIFT = ",".join(map(str, MEAN * 4))


def taken(source: Path, output: Path, origin: Any, **options: Any) -> Summary:
    options.setdefault("fps", "8")
    return run_import(ImportJob(origin=origin, source=str(source), output=str(output), **options), HERE)


def digests(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (output / "data").iterdir()}


def problems(output: Path, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """What `latentmill verify` finds."""
    capsys.readouterr()
    verify.main(["--output", str(output), "--json"])
    found: list[Any] = json.loads(capsys.readouterr().out)["problems"]
    return found


def test_what_fastvideo_stores_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Raw float32 there, scaled bfloat16 here: the same bits as before the export."""
    into, _ = exported(tmp_path, "fastvideo")
    options = {"scale": WAN_SCALE, "shift": WAN_SHIFT, "store_dtype": "bfloat16", "vae_name": "AutoencoderKLWan"}
    summary = taken(into, tmp_path / "back", "fastvideo", **options, fps=None, shard_size=3)
    assert (summary.done_shards, summary.planned_shards) == (4, 4)
    before, after = rows_of(tmp_path / "out"), rows_of(tmp_path / "back")
    by_key = {row["key"]: row for row in after.values()}
    assert len(by_key) == len(before) == 8
    for row in before.values():
        back = by_key[row["key"]]
        assert torch.equal(back["latent"], row["latent"])
        names = ("caption", "num_frames", "height", "width", "fps")
        assert [back[name] for name in names] == [row[name] for name in names]
    ours, theirs = (latentmill.open(tmp_path / name, columns=STATISTICS.names).statistics for name in ("out", "back"))
    assert ours
    assert theirs
    assert np.allclose(ours.whole.mean, theirs.whole.mean)
    assert problems(tmp_path / "back", capsys) == []


@pytest.mark.parametrize("to", ["pt", "automodel", "ltx"])
def test_torch_files_of_several_forms_are_taken(tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]) -> None:
    if to == "pt":
        write_family(tmp_path / "out", vae_of(WAN_21))
        export(ExportJob(output=str(tmp_path / "out"), to="pt", into=str(tmp_path / "to")), HERE)
        into = tmp_path / "to"
    else:
        into, _ = exported(tmp_path, to)
    source = into / ".precomputed/latents" if to == "ltx" else into
    compression = {"time_compression": 8, "space_compression": 32} if to == "ltx" else {}
    taken(source, tmp_path / "back", "pt", **compression)
    before, after = rows_of(tmp_path / "out"), rows_of(tmp_path / "back")
    by_id = {Path(row["key"]).stem: row for row in after.values()}
    assert by_id.keys() == before.keys()
    assert all(torch.equal(by_id[id]["latent"], row["latent"]) for id, row in before.items())
    assert all(by_id[id]["num_frames"] == row["num_frames"] for id, row in before.items())
    assert problems(tmp_path / "back", capsys) == []


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Five torch files: two good, and one each that is not finite, of another shape, and no torch file."""
    folder, rng = tmp_path / "files", torch.Generator().manual_seed(0)
    folder.mkdir()
    for name, shape in (("a", (4, 3, 2, 4)), ("b", (4, 3, 2, 4)), ("c", (4, 2, 2, 4)), ("d", (4, 3, 2, 4))):
        torch.save(torch.randn(shape, generator=rng), folder / f"{name}.pt")
    torch.save(torch.full((4, 3, 2, 4), torch.nan), folder / "d.pt")
    (folder / "e.pt").write_bytes(b"no torch file")
    torch.save({"latent": Path("code")}, folder / "f.pt")
    return folder


def test_what_cannot_be_taken_is_a_rejection(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = taken(files, tmp_path / "out", "pt")
    assert summary.latents == 2
    assert summary.rejected == {"bad_row": 1, "nonfinite": 1, "unreadable": 2}
    assert problems(tmp_path / "out", capsys) == []
    lines = [json.loads(line) for path in (tmp_path / "out/rejected").iterdir() for line in path.open()]
    assert [(line["key"], line["video"]) for line in lines] == [("c.pt", 2), ("d.pt", 3), ("e.pt", 4), ("f.pt", 5)]
    assert "a clip of 5x16x32 is none of --buckets" in lines[0]["message"]


def test_every_reading_command_takes_the_result(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out = str(tmp_path / "out")
    flags = ["--from", "pt", "--source", str(files), "--output", out, "--fps", "8", "--workers", "1"]
    assert command.main(flags) == 0
    words = capsys.readouterr().out.split()
    assert words[:11] == ["shards", "1", "of", "1", "planned", "6", "clips", "latents", "2", "(768", "B)"]
    assert ls.main([out]) == 0
    assert "2, 0 with a caption" in capsys.readouterr().out
    assert stats.main(["--output", out]) == 0
    assert "normalisation that fits" in capsys.readouterr().out
    assert report.main(["--output", out, "--to", str(tmp_path / "page.html"), "--no-decode"]) == 0
    assert "imported_from" in (tmp_path / "page.html").read_text()
    assert len(list(latentmill.open(out).loader(batch_size=2))) == 1


def test_encode_refuses_to_go_on_with_it(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken(files, tmp_path / "out", "pt", vae_name="tiny")
    assert encode.main(["--source", str(files), "--output", str(tmp_path / "out"), "--vae", "tiny", "--dry-run"]) == 2
    assert "vae.config.imported_from: absent in this run, pt there" in capsys.readouterr().err
    flags = ["--output", str(tmp_path / "out"), "--reencode", "1", "--vae", "tiny"]
    assert verify.main(flags) == 2
    assert "were imported from pt: there is no video to encode again" in capsys.readouterr().err


def test_a_broken_import_resumes_to_the_same_bytes_and_grows(files: Path, tmp_path: Path) -> None:
    taken(files, tmp_path / "out", "pt", shard_size=2)
    whole = digests(tmp_path / "out")
    lost = next((tmp_path / "out/data").iterdir())
    lost.unlink()
    summary = taken(files, tmp_path / "out", "pt", shard_size=2)
    assert (summary.done_shards, digests(tmp_path / "out")) == (3, whole)
    torch.save(torch.ones(4, 3, 2, 4), files / "aa.pt")
    summary = taken(files, tmp_path / "out", "pt", shard_size=2)
    assert (summary.planned_shards, summary.latents) == (4, 3)
    after = digests(tmp_path / "out")
    assert {name: after[name] for name in whole} == whole


def test_raw_latents_are_scaled(files: Path, tmp_path: Path) -> None:
    taken(files, tmp_path / "out", "pt", raw=True, scale="0.5", shift="1,2,3,4")
    want = (torch.load(files / "a.pt", weights_only=True) - torch.arange(1.0, 5.0).view(-1, 1, 1, 1)) * 0.5
    row = latentmill.open(tmp_path / "out")[0]
    assert torch.equal(row["latent"], want)
    raw = latentmill.open(tmp_path / "out").unscaled()[0]["latent"]
    assert torch.allclose(raw, torch.load(files / "a.pt"), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "nowhere"}, "no first latent to go by: there is none of --from pt"),
        ({"fps": None}, "--fps is needed"),
        ({"vae": "tiny"}, "have 16 channels, and .* has 4"),
        ({"scale": "1,2"}, "--scale must be one number or 4"),
        ({"buckets": ("9x16",)}, "TxHxW"),
    ],
)
def test_bad_configuration_is_refused_before_anything_is_written(
    files: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    options = {"source": str(files), "fps": "8"} | options
    if options["source"] == "nowhere":
        options["source"] = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=says):
        run_import(ImportJob(origin="pt", output=str(tmp_path / "out"), **options), HERE)
    assert not (tmp_path / "out").exists()


def test_an_import_can_be_exported(files: Path, tmp_path: Path) -> None:
    taken(files, tmp_path / "out", "pt", vae_name="AutoencoderKLWan")
    summary = export(ExportJob(output=str(tmp_path / "out"), to="webdataset", into=str(tmp_path / "to")), HERE)
    assert summary.counts == {"4x3x2x4": 2}
