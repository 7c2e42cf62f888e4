"""Laws: a run trusts nothing of its own output. What it cannot stand on is refused in one line that names the file,
what is derived is made again, and no flipped bit gives a wrong row, a traceback, or success."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import encode, status
from pipeline.errors import ConfigError
from pipeline.output.commit import seal
from pipeline.plan.frozen import read_plan
from pipeline.runs import run_records
from pipeline.runs.summary import CONFIG
from pipeline.storage import Storage
from tests.outputs import CLIPS, make_output, shard

pytest_plugins = ["tests.made_outputs"]


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make_output(source / "*.tar", where := tmp_path_factory.mktemp("made") / "out", CLIPS)
    return where


@pytest.fixture
def again(source: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command that made the output, once more: status and what it said. Without work it starts no Ray."""

    def again(*flags: str) -> tuple[int, str]:
        clip = ["--vae", "tiny", "--num-frames", "9", "--height", "32", "--width", "48", "--fps", "8", "--clips", "all"]
        command = ["--source", f"{source}/*.tar", "--output", str(out), *clip, *flags]
        return encode.main(command), "".join(capsys.readouterr())

    return again


def files(out: Path) -> dict[str, bytes]:
    """All but the runs' own records."""
    paths = (path for path in out.rglob("*") if path.is_file() and path.parent.name != "runs")
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def flips(path: Path, count: int) -> Iterator[None]:
    """The file with one bit flipped, so many times; whole again in the end."""
    data, rng = path.read_bytes(), random.Random(path.name)
    for _ in range(count):
        flipped, bit = bytearray(data), rng.randrange(8 * len(data))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        yield
    path.write_bytes(data)


def refused(result: tuple[int, str], *named: str) -> None:
    code, said = result
    assert code == CONFIG, said
    assert all(name in said for name in named), said
    assert "Traceback" not in said


def test_nothing_is_wrong_with_a_sound_output(out: Path, again: Callable[..., tuple[int, str]]) -> None:
    before = files(out)
    assert again()[0] == 0
    assert files(out) == before


def test_a_shard_that_no_plan_names_is_refused(out: Path, source: Path, again: Callable[..., tuple[int, str]]) -> None:
    shutil.copy(out / f"data/{shard(out)}.parquet", out / "data/another-0123456789ab.parquet")
    refused(again(), "data/another-0123456789ab.parquet", "plan/")
    refused(again("--dry-run"), "data/another-0123456789ab.parquet")
    (out / "data/another-0123456789ab.parquet").unlink()
    shutil.rmtree(out / "plan")
    refused(again(), "data/one-", "plan/")
    assert not (out / "plan").exists()


def test_data_without_its_spec_is_refused(out: Path, again: Callable[..., tuple[int, str]]) -> None:
    (out / "spec.json").unlink()
    refused(again(), "data/one-", "spec.json")
    assert not (out / "spec.json").exists()
    shutil.rmtree(out / "data")
    (out / "_staging/one-0").mkdir(parents=True)
    (out / "_staging/one-0/v000000.c000000.k0000of0001.part").touch()
    refused(again(), "_staging/one-0", "spec.json")


@pytest.mark.parametrize("damage", ["cut", "emptied", "swapped", "of another spec"])
def test_a_data_file_that_is_not_what_was_committed_is_refused(
    out: Path, again: Callable[..., tuple[int, str]], damage: str
) -> None:
    name = shard(out)
    path = out / f"data/{name}.parquet"
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-100])
        case "emptied":
            path.write_bytes(b"")
        case "swapped":
            shutil.copy(out / f"data/{shard(out, 'two')}.parquet", path)
        case "of another spec":  # copied here from another output, without its index
            data = path.read_bytes()
            assert b'"seed":0' in data
            path.write_bytes(data.replace(b'"seed":0', b'"seed":7'))
            (out / f"index/{name}.parquet").unlink()
    refused(again(), f"data/{name}.parquet", "delete it and run again")
    path.unlink()
    assert [left.name for left in read_plan(Storage(str(out))).remaining()] == [name]


@pytest.mark.parametrize("damage", ["deleted", "emptied", "garbled", "of another shard"])
@pytest.mark.parametrize("what", ["index/{}.parquet", "rejected/{}.jsonl"])
def test_what_is_derived_is_made_again(
    out: Path, again: Callable[..., tuple[int, str]], what: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(out)
    path = out / what.format(shard(out))
    match damage:
        case "deleted":
            path.unlink()
        case "emptied":
            path.write_bytes(b"")
        case "garbled":
            path.write_bytes(b"\xff\x00" * 500)
        case _:
            path.write_bytes((out / what.format(shard(out, "two"))).read_bytes() + b"\n" * path.name.endswith("l"))
    assert status.main(["--output", str(out)]) == 0
    assert "4 latents + 2 rejected" in capsys.readouterr().out
    code, said = again()
    assert code == 0, said
    assert "Traceback" not in said
    assert files(out) == before


def test_no_flip_in_a_plan_passes(out: Path) -> None:
    """Each of 300 is refused, and the file named."""
    for _ in flips(out / "plan/000000.parquet", 300):
        with pytest.raises(ConfigError, match=r"plan/000000\.parquet is damaged"):
            read_plan(Storage(str(out)))
    assert read_plan(Storage(str(out))).num_shards == 2


def test_a_garbled_plan_is_refused_in_one_line(out: Path, again: Callable[..., tuple[int, str]]) -> None:
    (out / "plan/000000.parquet").write_bytes(b"PAR1 and no more")
    refused(again(), "plan/000000.parquet is damaged")


def test_a_plan_of_an_older_version_has_no_checksum_and_still_opens(out: Path) -> None:
    path = out / "plan/000000.parquet"
    table, before = pq.read_table(path), list(read_plan(Storage(str(out))))
    pq.write_table(table, path, compression="zstd")
    assert list(read_plan(Storage(str(out)))) == before


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", ["index/{}.parquet", "rejected/{}.jsonl"])
def test_no_flip_in_what_is_derived_passes(out: Path, what: str, count: int) -> None:
    """The file is made again each time, to the same bytes."""
    before, name = files(out), shard(out)
    spec, output = json.dumps(json.loads((out / "spec.json").read_text())), Storage(str(out))
    for _ in flips(out / what.format(name), count):
        assert seal(output, sorted(path.stem for path in (out / "data").glob("*.parquet")), spec) == 4
        assert files(out) == before


def test_an_index_of_an_older_version_has_no_checksum_and_still_serves(out: Path) -> None:
    path = out / f"index/{shard(out)}.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path, compression="zstd")
    old = path.read_bytes()
    assert seal(Storage(str(out)), sorted(file.stem for file in (out / "data").glob("*.parquet"))) == 4
    assert path.read_bytes() == old


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"[]", b"{}", b'{"environment": 3}', b"null"])
def test_a_record_of_a_run_that_cannot_be_read_is_passed_over(
    out: Path, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (out / "runs/00000000T000000-bad.json").write_bytes(garbage)
    run_records.warn_of_differences(Storage(str(out)), {"torch": "another"})
    assert "torch=another in this run" in caplog.text
