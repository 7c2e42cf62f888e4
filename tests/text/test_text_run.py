"""Laws of `latentmill text`, end to end with Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray
import torch

import latentmill
from jobs import text as command
from latentmill import format
from pipeline.runs.stop import STATUS
from pipeline.storage import Storage
from pipeline.text import shard_file
from pipeline.text.checkpoint import TextCheckpoint, resolve
from pipeline.text.encoder import TextEncoder
from pipeline.text.job import TextJob, TextWorkers
from pipeline.text.run import run
from tests.driver import Driver
from tests.reader.made import shard_names, write_output, write_shard
from tests.text.made import write_text

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3", "tests.local_ray"]

pytestmark = pytest.mark.usefixtures("local_ray")

Encoders = Callable[[str], Path]


def files(out: Path, name: str = "t5") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "text" / name).glob("*.*"))}


def job(out: Path, encoder: Path, **options: object) -> TextJob:
    return TextJob(**({"output": str(out), "encoder": str(encoder), "dtype": "float32"} | options))  # type: ignore[arg-type]


@pytest.mark.slow
def test_committed_shards_get_their_text_and_later_ones_too(encoders: Encoders, tmp_path: Path) -> None:
    made = write_output(tmp_path, num_shards=2)
    summary = run(job(tmp_path, encoders("t5")))
    assert (summary.shards, summary.done, summary.rows, summary.open_shards) == (3, 3, 17, {})
    before = files(tmp_path)
    assert sorted(before) == [*(f"{shard}.parquet" for shard in shard_names(2)), "empty.parquet", "spec.json"]
    write_shard(Storage(str(tmp_path)), made, shard_names(3)[2], 8)
    assert run(job(tmp_path, encoders("t5"))).rows == 8
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1
    assert not list((tmp_path / "_claims").rglob("*.*"))
    assert len(list((tmp_path / "text/t5/runs").glob("*.json"))) == 2
    encoder = TextEncoder(*encoder_of(job(tmp_path, encoders("t5"))))
    for shard in shard_names(3):
        rows = list(shard_file.read(after[f"{shard}.parquet"]))
        index = format.index_of((tmp_path / format.data_path(shard)).open("rb"), shard)
        assert [row.id for row in rows] == index["id"].to_pylist()
        captions = index["caption"].to_pylist()
        expected = encoder([caption or "" for caption in captions])
        assert [row.embedding for row in rows] == [expected[caption or ""] for caption in captions]
    (empty,) = shard_file.read(after["empty.parquet"])
    assert (empty.id, empty.embedding) == ("", encoder([""])[""])


def encoder_of(settings: TextJob) -> tuple[TextCheckpoint, object]:
    checkpoint = TextCheckpoint.of(settings)
    return checkpoint, resolve(settings, checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_bytes_do_not_depend_on_the_number_of_actors(encoders: Encoders, tmp_path: Path, batch_size: int) -> None:
    for actors in (1, 3):
        write_output(tmp_path / str(actors), num_shards=5)
        workers = TextWorkers(encoders=str(actors))
        run(job(tmp_path / str(actors), encoders("t5"), batch_size=batch_size, workers=workers))
    assert files(tmp_path / "1") == files(tmp_path / "3")
    assert len(files(tmp_path / "1")) == 7


@pytest.mark.slow
def test_killed_twice_it_ends_like_an_undisturbed_run(encoders: Encoders, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for out in (killed, whole):
        write_output(out, num_shards=6, clips=40)
    write_text(whole, encoders("t5"), dtype="bfloat16")

    def driver() -> Driver:
        flags = ["--output", str(killed), "--encoder", str(encoders("t5")), "--encoders", "2"]
        return Driver(flags, module="jobs.text")

    def stored() -> list[Path]:
        return sorted(killed.glob("text/t5/*.parquet"))

    driver().kill_when(lambda: bool(list(killed.glob("_claims/text/t5/*"))))
    driver().kill_when(lambda: len(stored()) >= 2)
    kept = {path: path.stat().st_mtime_ns for path in stored()}
    driver().finish()
    assert files(killed) == files(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not [path for path in (killed / "_claims").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_stop_says_resume_me_and_the_next_run_does(encoders: Encoders, tmp_path: Path) -> None:
    write_output(tmp_path, num_shards=40, clips=2)
    command = ["--output", str(tmp_path), "--encoder", str(encoders("t5")), "--grace", "60"]
    driver = Driver(command, module="jobs.text")
    driver.signal_when(lambda: bool(list(tmp_path.glob("text/t5/*.parquet"))))
    printed = driver.finish(STATUS["SIGTERM"])
    assert "not begun" in printed
    assert not [path for path in (tmp_path / "_claims").rglob("*") if path.is_file()]
    Driver(command, module="jobs.text").finish()
    assert len(list(tmp_path.glob("text/t5/*.parquet"))) == 41


@pytest.mark.slow
def test_to_s3_and_back(encoders: Encoders, tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    write_output(s3.uri("out"), num_shards=2)
    write_output(tmp_path / "local", num_shards=2)
    flags = ["--output", s3.uri("out"), "--encoder", str(encoders("t5")), "--dtype", "float32"]
    Driver(flags, module="jobs.text").finish()
    write_text(tmp_path / "local", encoders("t5"))
    for path in (tmp_path / "local").glob("text/t5/*.parquet"):
        assert s3.get(f"out/text/t5/{path.name}") == path.read_bytes()
    rows = zip(latentmill.open(s3.uri("out"), text="t5"), latentmill.open(tmp_path / "local", text="t5"), strict=True)
    assert all(torch.equal(one["text"], other["text"]) for one, other in rows)


@pytest.mark.slow
def test_two_runs_at_once_share_the_shards(encoders: Encoders, tmp_path: Path) -> None:
    shared, whole = tmp_path / "shared", tmp_path / "whole"
    for out in (shared, whole):
        write_output(out, num_shards=12)
    write_text(whole, encoders("t5"), dtype="bfloat16")
    flags = ["--output", str(shared), "--encoder", str(encoders("t5")), "--encoders", "1"]
    drivers = [Driver(flags, module="jobs.text") for _ in range(2)]
    for driver in drivers:
        assert "13 of 13" in driver.finish()
    assert files(shared) == files(whole)
    assert not [path for path in (shared / "_claims").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_encoders_that_cannot_start_end_the_run_and_say_why(
    encoders: Encoders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_output(tmp_path / "out", num_shards=2)
    shutil.copytree(encoders("t5"), tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder/config.json").read_text())
    (tmp_path / "encoder/config.json").write_text(json.dumps(config | {"num_layers": 4}))
    assert command.main(["--output", str(tmp_path / "out"), "--encoder", str(tmp_path / "encoder")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("latentmill text:")]
    assert "no encoder can start" in line
    assert "weights are missing" in line
    (record,) = (tmp_path / "out/text/t5/runs").glob("*.json")
    assert "no encoder can start" in json.loads(record.read_text())["failure"]


CONFIG_ERRORS = {
    "no output": (["--output", "/nowhere"], "holds no spec.json: not an output of latentmill encode"),
    "no tokenizer": (["--tokenizer", "/nowhere"], "/nowhere holds no tokenizer"),
    "unknown column": (
        ["--caption-column", "capton", "--name", "b"],
        "--caption-column must be one of caption, key, n, got 'capton'",
    ),
    "another spec": (["--max-length", "9"], "max_length: 9 in this run, 16 there"),
    "another layer": (["--layer", "1"], "layer: 1 in this run, last there"),
    "too many encoders": (["--name", "b", "--encoders", "9999"], "--encoders 9999 of 1 CPUs"),
}


def test_bad_configuration_is_one_line_before_ray_starts(
    encoders: Encoders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    write_output(tmp_path, num_shards=2)
    write_text(tmp_path, encoders("t5"), shards=["empty"], max_length=16)
    for flags, message in CONFIG_ERRORS.values():
        usual = ["--output", str(tmp_path), "--encoder", str(encoders("t5")), "--dtype", "float32"]
        length = [] if "--max-length" in flags else ["--max-length", "16"]
        assert command.main([*usual, *length, *flags]) == 2
        said = capsys.readouterr().err
        assert said.count("latentmill text:") == 1
        assert message in said


@pytest.mark.slow
def test_many_empty_captions_are_said_and_refused_if_asked(
    encoders: Encoders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_output(tmp_path, num_shards=2)
    flags = ["--output", str(tmp_path), "--encoder", str(encoders("t5"))]
    assert command.main([*flags, "--strict"]) == 2
    assert "--strict: 4 of 16 captions (25%) are empty" in capsys.readouterr().err
    assert not (tmp_path / "text").exists()
    assert command.main([*flags, "--strict", "--drop-empty", "--dry-run"]) == 0
    assert command.main([*flags]) == 0
    printed = capsys.readouterr().out
    assert "captions  12 of 16 rows, 4 are empty" in printed
    assert "warning   4 of 16 captions (25%) are empty" in printed


@pytest.mark.slow
def test_the_command_says_what_it_did(encoders: Encoders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_output(tmp_path, num_shards=1)
    flags = ["--output", str(tmp_path), "--encoder", str(encoders("clip")), "--name", "clip", "--drop-empty"]
    assert command.main([*flags, "--dry-run"]) == 0
    assert "clip: 0 shards done, 2 left" in capsys.readouterr().out
    assert not (tmp_path / "text").exists()
    assert command.main(flags) == 0
    printed = capsys.readouterr().out
    assert "2 of 2, the empty prompt included" in printed
    assert "dropped   2 rows" in printed
    (record,) = (tmp_path / "text/clip/runs").glob("*.json")
    assert json.loads(record.read_text())["summary"]["dropped"] == 2
    assert command.main(flags) == 0
    assert len(list((tmp_path / "text/clip/runs").glob("*.json"))) == 2
