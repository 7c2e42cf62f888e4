"""Laws of the place of an export: it belongs to one output and one selection, one run works in it at a time, every
selected row is there once whatever happens meanwhile, and what is missing is noticed."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch

import latentmill
from jobs import export as command
from pipeline.control.spread import SpreadRule
from pipeline.errors import ConfigError, StorageError
from pipeline.export import pieces
from pipeline.export.families import WAN_21
from pipeline.export.plan import ExportJob, plan_export
from pipeline.export.run import export
from pipeline.output.spec_file import write_spec
from pipeline.records import canonical_json
from pipeline.runs.claims import STALE_SECONDS, Owner
from pipeline.storage import Storage
from tests.exports.made import vae_of, write_family, write_text
from tests.exports.test_export import files, loaded
from tests.outputs import rewrite
from tests.reader.made import shard_names, write_shard
from tests.small import LATENT, spec

HERE = SpreadRule(workers=1)
FAR = Owner(run="far", machine="another machine", pid=1, started="1")
"""A run of which nobody here can say whether it lives."""


def make(where: Path, names: list[str], clips: int = 4) -> Storage:
    """Commit these shards to the output at `where`, which may have others."""
    output = Storage(str(where))
    write_spec(output, spec(latent=LATENT))
    for name in names:
        write_shard(output, spec(latent=LATENT), name, clips)
    return output


def job_of(folder: Path, to: Any = "pt", **changes: Any) -> ExportJob:
    return replace(ExportJob(output=str(folder / "out"), to=to, into=str(folder / "to")), **changes)


def is_whole(folder: Path, into: Path | None = None) -> bool:
    """Whether a `pt` export has each row of the output once, with its latent."""
    latents, into = latentmill.open(folder / "out"), into or folder / "to"
    rows = [latents[i] for i in range(len(latents))]
    found = loaded(into)
    return Counter(path.stem for path in into.rglob("*.pt")) == Counter(row["id"] for row in rows) and all(
        torch.equal(found[row["id"]]["latent"], row["latent"]) for row in rows
    )


def grow(folder: Path) -> None:
    """Commit a shard that sorts before all others, so that every position is another row's."""
    make(folder / "out", shard_names(1))


def meanwhile(job: ExportJob, action: Callable[[], object]) -> Any:
    """Export; after the first piece, do something else, as another process would. Return the summary."""
    done: list[object] = []

    def echo(_: str) -> None:
        if not done:
            done.append(None)
            action()
            pieces._opened.cache_clear()  # the next piece is written by a worker that has just started

    return export(job, HERE, echo)


def test_an_output_that_grows_during_an_export_moves_no_row(tmp_path: Path) -> None:
    make(tmp_path / "out", shard_names(4)[1:])

    def another_run() -> None:
        grow(tmp_path)
        with pytest.raises(StorageError, match=r"another run exports to this place \(process \d+ of this machine\)"):
            export(job_of(tmp_path), HERE)

    assert meanwhile(job_of(tmp_path), another_run).is_whole
    assert export(job_of(tmp_path), HERE).written == 1
    assert is_whole(tmp_path)


def test_two_runs_that_both_believe_to_hold_the_place_lose_and_double_no_row(tmp_path: Path) -> None:
    """The first one sleeps so long that its claim is stale; the second one exports more and ends. The list of a trainer
    then has all pieces, or the first run says that it has not."""
    write_family(tmp_path / "out", vae_of(WAN_21))
    write_text(tmp_path / "out")
    hidden = tmp_path / "hidden"
    for folder, suffix in (("data", "*.parquet"), ("index", "*.parquet"), ("text/t5", "0*.parquet")):
        (hidden / folder).mkdir(parents=True)
        first = min((tmp_path / "out" / folder).glob(suffix))
        first.rename(hidden / folder / first.name)
    (tmp_path / "out/index.parquet").unlink()
    job = job_of(tmp_path, "musubi", text="t5", any_text=True)

    def another_run() -> None:
        shutil.copytree(hidden, tmp_path / "out", dirs_exist_ok=True)
        claim = tmp_path / "to/_export/claim"
        claim.write_text(canonical_json({"run": "far", "machine": "far", "pid": 1, "started": "1"}))
        os.utime(claim, (0, claim.stat().st_mtime - STALE_SECONDS - 1))
        assert export(job, HERE).is_whole

    with pytest.raises(StorageError, match=r"another run worked here meanwhile: .* has 1 pieces .*run the same"):
        meanwhile(job, another_run)
    assert export(job, HERE).is_whole
    assert len((tmp_path / "to/items.jsonl").read_text().splitlines()) == 8
    assert len(list((tmp_path / "to/cache").glob("*_te.safetensors"))) == 8


def test_a_worker_that_finds_other_rows_at_its_positions_writes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "out", shard_names(3)[1:])
    job = job_of(tmp_path)
    plan = plan_export(job)
    grow(tmp_path)
    (tmp_path / "to/_export/rows").mkdir(parents=True)
    wrong = tmp_path / f"to/_export/rows/{plan.selection[:32]}.index"
    grown = latentmill.open(tmp_path / "out")
    four = grown.where(pc.field("id").isin(grown.to_arrow()["id"].to_pylist()[:4]))
    for index in (grown, four):
        index.save_index(wrong)
        pieces._opened.cache_clear()
        with pytest.raises(StorageError, match="is not the index of these rows: run again"):
            pieces.write_piece(job, plan.selection, plan.pieces[1])
    assert files(tmp_path / "to") == {}


@pytest.mark.parametrize("to", ["pt", "webdataset"])
def test_another_output_is_refused_and_a_moved_one_goes_on(tmp_path: Path, to: Any) -> None:
    a, b = make(tmp_path / "out", shard_names(2)), make(tmp_path / "b", shard_names(4)[2:])
    a.put("plan/000000.parquet", b"of a")
    b.put("plan/000000.parquet", b"of b")
    export(job_of(tmp_path, to), HERE)
    before = files(tmp_path / "to")
    with pytest.raises(ConfigError, match=r"holds an export of another output, .*/out; this is .*/b: use another"):
        export(job_of(tmp_path, to, output=str(tmp_path / "b")), HERE)
    assert files(tmp_path / "to") == before
    (tmp_path / "out").rename(tmp_path / "moved")
    make(tmp_path / "moved", shard_names(3))
    assert export(job_of(tmp_path, to, output=str(tmp_path / "moved")), HERE).written == 1
    assert f'"output":"{tmp_path}/moved"' in (tmp_path / "to/_export/export.json").read_text()


def test_an_export_of_another_output_that_was_killed_at_once_is_refused(tmp_path: Path) -> None:
    """Two outputs without a plan are known by their addresses, also before the first piece is finished."""
    make(tmp_path / "out", shard_names(2))
    make(tmp_path / "b", shard_names(2))
    export(job_of(tmp_path), HERE)
    shutil.rmtree(tmp_path / "to/_export/pieces")
    with pytest.raises(ConfigError, match="of another output"):
        export(job_of(tmp_path, output=str(tmp_path / "b")), HERE)


def test_pieces_that_the_output_does_not_have_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", shard_names(3))
    export(job_of(tmp_path), HERE)
    record = tmp_path / "to/_export/export.json"
    text = record.read_text()
    record.write_text("{" + ",".join(part for part in text.strip("{}").split(",") if '"output' not in part) + "}")
    assert export(job_of(tmp_path), HERE).is_whole  # a record of an older version, which named no output
    for folder in ("data", "index"):
        min((tmp_path / "out" / folder).iterdir()).unlink()
    with pytest.raises(ConfigError, match=rf"has 1 pieces of shards .*: {shard_names(1)[0]}\. If the output has grown"):
        export(job_of(tmp_path), HERE)


def other_runs(folder: Path) -> dict[str, ExportJob]:
    shutil.copytree(folder / "out", folder / "moved")
    return {
        "the same": job_of(folder),
        "of fewer rows": job_of(folder, where="caption != None"),
        "of one shape": job_of(folder, bucket="2x1x2x3"),
        "for another trainer": job_of(folder, "webdataset"),
        "of a copy": job_of(folder, output=str(folder / "moved")),
    }


def test_no_other_run_meets_one_that_works(tmp_path: Path) -> None:
    make(tmp_path / "out", shard_names(3)).put("plan/000000.parquet", b"plan")

    def others() -> None:
        for name, job in other_runs(tmp_path).items():
            says = "another run exports" if name in ("the same", "of a copy") else "with other settings"
            with pytest.raises((ConfigError, StorageError), match=says):
                export(job, HERE)

    assert meanwhile(job_of(tmp_path), others).is_whole
    assert is_whole(tmp_path)


def test_the_claim_of_a_dead_run_is_taken_over_and_of_a_distant_one_when_it_is_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "out", shard_names(2))
    claim, flags = tmp_path / "to/_export/claim", ["--output", str(tmp_path / "out"), "--to", "pt", "--workers", "1"]
    flags += ["--into", str(tmp_path / "to")]
    claim.parent.mkdir(parents=True)
    for ahead in (0, 86_400):  # also where the clock of that machine is a day ahead
        claim.write_text(canonical_json({"run": "far", "machine": "far", "pid": 1, "started": "1"}))
        os.utime(claim, (0, claim.stat().st_mtime + ahead))
        assert command.main(flags) == 1
        assert "(process 1 of another machine). Run the same command again when it has ended" in capsys.readouterr().err
    os.utime(claim, (0, 0))
    assert command.main(flags) == 0
    assert not claim.exists()
    here = Owner.this_process("dead")
    min((tmp_path / "to/_export/pieces").iterdir()).unlink()
    for _ in ("a piece is left", "killed when all was done"):
        claim.write_text(canonical_json({"run": "x", "machine": here.machine, "pid": here.pid, "started": "0"}))
        assert command.main(flags) == 0
        assert not claim.exists()
    assert is_whole(tmp_path)


def test_what_a_kill_left_before_the_first_record_is_no_strange_file(tmp_path: Path) -> None:
    make(tmp_path / "out", shard_names(2))
    temporary = tmp_path / "to/_staging/_tmp"
    temporary.mkdir(parents=True)
    for name, age in (("new", 0), ("old", 4000)):
        (temporary / name).write_bytes(b"half")
        os.utime(temporary / name, (0, (temporary / name).stat().st_mtime - age))
    assert export(job_of(tmp_path), HERE).is_whole
    assert [path.name for path in temporary.iterdir()] == ["new"]


@pytest.mark.parametrize("garbage", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'"text"', b"3"])
def test_a_damaged_record_is_refused_in_words(tmp_path: Path, garbage: bytes) -> None:
    make(tmp_path / "out", shard_names(1))
    Storage(str(tmp_path / "to")).put("_export/export.json", garbage)
    with pytest.raises(ConfigError, match=r"_export/export\.json is damaged.*: restore it, or use an empty place"):
        export(job_of(tmp_path), HERE)


@pytest.mark.parametrize("garbage", [b"", b"{", b"[1]", b"{}", b'{"digest":1,"counts":[],"files":{}}', b"\xff"])
def test_a_damaged_record_of_a_piece_is_a_piece_that_is_not_finished(tmp_path: Path, garbage: bytes) -> None:
    make(tmp_path / "out", shard_names(2))
    export(job_of(tmp_path), HERE)
    min((tmp_path / "to/_export/pieces").iterdir()).write_bytes(garbage)
    summary = export(job_of(tmp_path), HERE)
    assert (summary.written, summary.num_clips) == (1, 8)


@pytest.mark.parametrize("to", ["pt", "webdataset"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"cut")])
def test_a_file_that_is_missing_or_cut_is_noticed(tmp_path: Path, to: Any, harm: Callable[[Path], object]) -> None:
    make(tmp_path / "out", shard_names(3))
    export(job_of(tmp_path, to), HERE)
    before = files(tmp_path / "to")
    harm(max(path for path in (tmp_path / "to").rglob("*") if path.suffix in (".pt", ".tar")))
    assert export(job_of(tmp_path, to), HERE).written == 1
    assert files(tmp_path / "to") == before


def test_a_shard_that_was_made_again_with_fewer_rows_leaves_no_file_of_the_others(tmp_path: Path) -> None:
    make(tmp_path / "out", shard_names(2))
    export(job_of(tmp_path), HERE)
    for folder in ("data", "index"):
        max((tmp_path / "out" / folder).iterdir()).unlink()
    make(tmp_path / "out", shard_names(2)[1:], clips=2)
    assert export(job_of(tmp_path), HERE).written == 1
    assert is_whole(tmp_path)


def test_a_caption_that_changed_is_exported_again(tmp_path: Path) -> None:
    make(tmp_path / "out", shard_names(2))
    export(job_of(tmp_path), HERE)
    rewrite(tmp_path / "out", shard_names(1)[0], lambda rows, _: rows[1].update(caption="another"))
    assert export(job_of(tmp_path), HERE).written == 1
    assert "another" in {row["caption"] for row in loaded(tmp_path / "to").values()}


@pytest.mark.parametrize("inside", ["", "data/x", "link/x", "new/folder"])
def test_a_place_inside_the_output_is_refused(tmp_path: Path, inside: str) -> None:
    make(tmp_path / "out", shard_names(1))
    (tmp_path / "out/link").symlink_to(tmp_path / "out/data")
    before = files(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"is inside the output .*: use a place of its own"):
        export(job_of(tmp_path, into=str(tmp_path / "out" / inside)), HERE)
    assert files(tmp_path / "out") == before
