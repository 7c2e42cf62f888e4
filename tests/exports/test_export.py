"""Laws of an export, whatever its format: every selected row once, a killed export resumes to the same bytes, finished
pieces are left alone, and what cannot be is refused before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch

import latentmill
from jobs import export as command
from jobs import export as export_command
from jobs import import_latents as import_command
from pipeline.control.spread import SpreadRule
from pipeline.errors import ConfigError
from pipeline.export.plan import ExportJob
from pipeline.export.run import export
from pipeline.export.where import expression_of
from pipeline.storage import Storage
from tests.outputs import replace_latent, rewrite
from tests.reader.made import shard_names, write_output, write_shard
from tests.small import LATENT

ROOT = Path(__file__).parents[2]
HERE = SpreadRule(workers=1)


def files(into: Path) -> dict[str, str]:
    """The digest of each file of an export but its records."""
    return {
        str(path.relative_to(into)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(into.rglob("*"))
        if path.is_file() and "_export" not in path.parts
    }


def loaded(into: Path) -> dict[str, dict[str, Any]]:
    """The content of each file of a `pt` export, by id."""
    return {path.stem: torch.load(path, weights_only=True) for path in into.rglob("*.pt")}


def test_pt_holds_every_row_as_the_reader_gives_it(output: Path, tmp_path: Path) -> None:
    summary = export(ExportJob(output=str(output), to="pt", into=str(tmp_path / "to")), HERE)
    latents, found = latentmill.open(output), loaded(tmp_path / "to")
    assert summary.is_whole
    assert len(found) == len(latents) == 24
    for row in (latents[i] for i in range(len(latents))):
        assert torch.equal(found[row["id"]]["latent"], row["latent"])
        assert found[row["id"]]["latent"].dtype == torch.bfloat16
        names = ("id", "key", "caption", "num_frames", "height", "width", "fps")
        assert {name: found[row["id"]][name] for name in names} == {name: row[name] for name in names}
    assert summary.counts == {"x".join(map(str, shape)): count for shape, count in latents.shapes.items()}


def test_webdataset_holds_every_row(output: Path, tmp_path: Path) -> None:
    export(ExportJob(output=str(output), to="webdataset", into=str(tmp_path / "to")), HERE)
    latents = latentmill.open(output)
    members: dict[str, bytes] = {}
    for path in (tmp_path / "to").glob("*.tar"):
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    for row in (latents[i] for i in range(len(latents))):
        (tmp_path / "one.pth").write_bytes(members[f"{row['id']}.latent.pth"])
        assert torch.equal(torch.load(tmp_path / "one.pth", weights_only=True), row["latent"])
        assert members.get(f"{row['id']}.txt") == (row["caption"] and row["caption"].encode())
        assert json.loads(members[f"{row['id']}.json"])["key"] == row["key"]
    assert len({name.partition(".")[0] for name in members}) == 24


def test_the_installed_webdataset_decodes_the_tars(output: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    export(ExportJob(output=str(output), to="webdataset", into=str(tmp_path / "to")), HERE)
    tars = sorted(map(str, (tmp_path / "to").glob("*.tar")))
    rows = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    latents = latentmill.open(output)
    assert [row["__key__"] for row in rows] == [latents[i]["id"] for i in range(24)]
    assert all(torch.equal(row["latent.pth"], latents[i]["latent"]) for i, row in enumerate(rows))


@pytest.mark.parametrize("to", ["pt", "webdataset"])
def test_a_piece_without_its_record_is_written_again_and_the_others_are_left_alone(
    output: Path, tmp_path: Path, to: Any
) -> None:
    into = tmp_path / "to"
    job = ExportJob(output=str(output), to=to, into=str(into))
    export(job, HERE)
    whole, (lost, *_) = files(into), shard_names(3)
    (into / f"_export/pieces/{lost}.json").unlink()  # what a kill leaves: some files, and no record
    next(path for path in into.rglob("*") if path.is_file() and str(path.relative_to(into)).startswith(lost)).unlink()
    kept = {path: path.stat().st_mtime_ns for path in into.rglob("*") if path.is_file() and lost not in str(path)}
    summary = export(job, HERE)
    assert (summary.finished, summary.written) == (3, 1)
    assert files(into) == whole
    assert {path for path, before in kept.items() if path.stat().st_mtime_ns != before} == set()


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bytes(output: Path, tmp_path: Path) -> None:
    flags = ["--output", str(output), "--to", "pt", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.export", *flags, "--into", str(tmp_path / "killed")],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stderr
    assert process.stderr.readline().startswith("pieces 1/3")
    process.kill()
    process.communicate()
    assert command.main([*flags, "--into", str(tmp_path / "killed")]) == 0
    assert command.main([*flags, "--into", str(tmp_path / "whole")]) == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.slow
def test_workers_on_ray_write_the_same_bytes(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", tempfile.mkdtemp(prefix="lm", dir="/tmp"))
    for name, workers in (("here", "1"), ("there", "2")):
        flags = ["--output", str(output), "--to", "webdataset", "--into", str(tmp_path / name), "--workers", workers]
        assert command.main(flags) == 0
    assert len(files(tmp_path / "here")) == 3
    assert files(tmp_path / "here") == files(tmp_path / "there")


def test_a_second_run_writes_nothing(output: Path, tmp_path: Path) -> None:
    job = ExportJob(output=str(output), to="pt", into=str(tmp_path / "to"))
    export(job, HERE)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "to").rglob("*")}
    summary = export(job, HERE)
    assert (summary.finished, summary.written, summary.num_clips) == (3, 0, 24)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "to").rglob("*")} == before


def test_what_is_committed_later_becomes_new_pieces(tmp_path: Path) -> None:
    made = write_output(tmp_path / "out", 2)
    job = ExportJob(output=str(tmp_path / "out"), to="pt", into=str(tmp_path / "to"))
    export(job, HERE)
    before = files(tmp_path / "to")
    write_shard(Storage(str(tmp_path / "out")), made, shard_names(3)[2], 8)
    summary = export(job, HERE)
    assert (summary.pieces, summary.written, summary.num_clips) == (3, 1, 24)
    after = files(tmp_path / "to")
    assert {name: after[name] for name in before} == before


def test_a_shard_that_was_made_again_is_exported_again(tmp_path: Path) -> None:
    write_output(tmp_path / "out")
    job = ExportJob(output=str(tmp_path / "out"), to="pt", into=str(tmp_path / "to"))
    export(job, HERE)
    changed = shard_names(3)[1]
    rewrite(tmp_path / "out", changed, lambda rows, _: replace_latent(rows[2], rows[5]["latent"]))
    assert export(job, HERE).written == 1
    latents, found = latentmill.open(tmp_path / "out"), loaded(tmp_path / "to")
    assert all(torch.equal(found[latents[i]["id"]]["latent"], latents[i]["latent"]) for i in range(24))


def test_where_and_bucket_choose_rows(output: Path, tmp_path: Path) -> None:
    job = ExportJob(output=str(output), to="pt", into=str(tmp_path / "to"), where="caption != None", bucket="2x2x4x3")
    summary = export(job, HERE)
    latents = latentmill.open(output)
    want = [row["id"] for row in (latents[i] for i in range(24)) if row["caption"] and row["latent"].shape[2] == 4]
    assert sorted(loaded(tmp_path / "to")) == sorted(want)
    assert summary.counts == {"2x2x4x3": len(want)}


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("height >= 480", pc.field("height") >= 480),
        ("height == 32 and not width < 24", (pc.field("height") == 32) & ~(pc.field("width") < 24)),
        ("caption != None or fps is None", ~pc.field("caption").is_null() | pc.field("fps").is_null()),
        ("num_frames in [17, 33]", pc.field("num_frames").isin([17, 33])),
        ("0 <= start_sec < 2.5", (pc.field("start_sec") >= 0) & (pc.field("start_sec") < 2.5)),
        ("end_sec - start_sec > 1", pc.field("end_sec") - pc.field("start_sec") > 1),
        ("key == 'a/b'", pc.field("key") == "a/b"),
    ],
)
def test_where_is_an_expression_over_columns(text: str, expression: pc.Expression) -> None:
    assert expression_of(text).equals(expression)


@pytest.mark.parametrize("command", ["export", "import"])
def test_workers_below_zero_are_refused_in_words(
    output: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    main = {"export": export_command.main, "import": import_command.main}[command]
    flags = ["--to", "pt", "--into", "x"] if command == "export" else ["--from", "pt", "--source", "x"]
    assert main(["--output", str(output), *flags, "--workers", "-1"]) == 2
    assert "--workers must be 0 (one for each CPU) or more, got -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        *("1 / 0 == height", "'a' - 1 == height", "height in ['a', 1]", "height == " + "9" * 5000, "not " * 9000 + "x"),
        *(
            "(" * 300 + "x" + ")" * 300,
            "height == 'a\0",
            "x\0",
            "key in [1, [2]]",
            "height == \ud800",
            "-" * 9000 + "1",
        ),
    ],
)
def test_where_has_no_traceback(text: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        expression_of(text)


@pytest.mark.parametrize(
    "text", ["", "1", "height ==", "open('x')", "height.real == 1", "[x for x in 'a']", "True", "caption == [1]"]
)
def test_where_refuses_what_is_no_expression(text: str) -> None:
    with pytest.raises(ConfigError, match="--where"):
        expression_of(text)


REFUSED = {
    "no output": ({"output": "nowhere"}, "is not an output of latentmill"),
    "unknown column": ({"where": "hight == 1"}, "hight"),
    "nothing left": ({"where": "height == 1"}, "no row of 24 is kept"),
    "unknown shape": ({"bucket": "1x1x1x1"}, r"is no shape of these rows; there are 2x1x2x3 \(9 rows\), "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_written(output: Path, tmp_path: Path, case: str) -> None:
    changes, says = REFUSED[case]
    job = ExportJob(output=str(output), to="pt", into=str(tmp_path / "to"))
    with pytest.raises(ConfigError, match=says):
        export(replace(job, **changes), HERE)
    assert not (tmp_path / "to").exists()


def test_a_place_that_holds_something_else_or_another_export_is_refused(output: Path, tmp_path: Path) -> None:
    job = ExportJob(output=str(output), to="pt", into=str(tmp_path / "to"))
    (tmp_path / "to").mkdir()
    (tmp_path / "to/mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds mine\.txt and is no export"):
        export(job, HERE)
    (tmp_path / "to/mine.txt").unlink()
    export(job, HERE)
    with pytest.raises(
        ConfigError, match=r"other settings; use another place:\n  to: webdataset in this run, pt there"
    ):
        export(replace(job, to="webdataset"), HERE)


def test_a_damaged_row_leaves_its_piece_open_and_the_others_are_finished(tmp_path: Path) -> None:
    write_output(tmp_path / "out")
    path = tmp_path / f"out/data/{shard_names(3)[1]}.parquet"
    place = latentmill.open(tmp_path / "out").ranges([9])[0][0]
    content = bytearray(path.read_bytes())
    content[place.start] ^= 1
    path.write_bytes(content)
    summary = export(ExportJob(output=str(tmp_path / "out"), to="pt", into=str(tmp_path / "to")), HERE)
    assert (summary.finished, summary.pieces) == (2, 3)
    assert "crc32" in summary.open_shards[shard_names(3)[1]]
    flags = ["--output", str(tmp_path / "out"), "--to", "pt", "--into", str(tmp_path / "to"), "--workers", "1"]
    assert command.main(flags) == 1


def test_the_command_shows_the_counts(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output", str(output), "--to", "pt", "--into", str(tmp_path / "to"), "--workers", "1"]
    assert command.main(flags) == 0
    shown = capsys.readouterr().out
    assert "2x1x2x3   9\n" in shown
    assert "all       24 of 24\npieces    3 of 3, 3 written by this run\n" in shown
    assert command.main([*flags, "--bucket", "9x9x9x9"]) == 2
    assert "--bucket '9x9x9x9' is no shape" in capsys.readouterr().err


@pytest.mark.parametrize(("posterior", "draw"), [("mean", "mean"), ("sample", "sample"), ("moments", "mean")])
def test_stored_moments_become_the_mean(tmp_path: Path, posterior: Any, draw: Any) -> None:
    write_output(tmp_path / "out", 1, rule=replace(LATENT, posterior=posterior))
    export(ExportJob(output=str(tmp_path / "out"), to="pt", into=str(tmp_path / "to")), HERE)
    latents = latentmill.open(tmp_path / "out").posterior(draw)
    found = loaded(tmp_path / "to")
    assert all(torch.equal(found[latents[i]["id"]]["latent"], latents[i]["latent"]) for i in range(8))


@pytest.mark.slow
def test_a_signal_ends_an_export_that_resumes(tmp_path: Path) -> None:
    write_output(tmp_path / "out", 40, 12)
    flags = ["--output", str(tmp_path / "out"), "--to", "pt", "--into", str(tmp_path / "to"), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.export", *flags], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr
    assert process.stderr.readline().startswith("pieces 1/40")
    process.terminate()
    process.communicate()
    assert process.returncode == 75
    assert not (tmp_path / "to/_export/pieces" / f"{shard_names(40)[-1]}.json").exists()
    assert command.main(flags) == 0
    assert len(loaded(tmp_path / "to")) == 480
