"""Laws: a sound output has nothing wrong; whatever is damaged in it, one byte or one line, is named with its place."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.verify import main
from pipeline.output.commit import seal
from pipeline.storage import Storage
from pipeline.verify.whole import verify
from tests.outputs import CLIPS, Rows, make_output, only_parquet, rewrite, shard
from tests.small import video
from tests.sources import WRITERS
from tests.videos import cut

pytest_plugins = ["tests.made_outputs"]


def wrong(out: Path) -> list[str]:
    return [str(problem) for checked in verify(Storage(str(out))) for problem in checked.problems]


def notes(out: Path) -> list[str]:
    return [note for checked in verify(Storage(str(out))) for note in checked.notes]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def index_of(out: Path, name: str) -> Rows:
    rows: Rows = pq.read_table(out / "index" / f"{name}.parquet").to_pylist()
    return rows


def write_index(out: Path, name: str, rows: Rows) -> None:
    path = out / "index" / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)


def test_a_sound_output_has_nothing_wrong(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wrong(made) == []
    assert notes(made) == []
    assert main(["--output", str(made)]) == 0
    assert capsys.readouterr().out.startswith("ok: 0 problems in 2 shards (0 remain), 4 latents")


def test_a_flipped_bit_of_any_latent_is_named(out: Path) -> None:
    for i, row in enumerate(index_of(out, name := shard(out))):
        path = out / row["file"]
        flip(path, row["byte_offset"] + row["byte_length"] // 2)
        assert any(f"data/{name}.parquet row {i}: latent: found bytes of crc32" in line for line in wrong(out))
        flip(path, row["byte_offset"] + row["byte_length"] // 2)
    assert wrong(out) == []


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.999])
def test_a_cut_data_file_is_named(out: Path, share: float) -> None:
    path = out / "data" / f"{shard(out)}.parquet"
    path.write_bytes(cut(path.read_bytes(), share))
    (line,) = [line for line in wrong(out) if line.startswith("data/")]
    assert f"data/{path.name}: file: found" in line


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.999])
def test_a_cut_or_lost_npy_array_is_named(out: Path, share: float) -> None:
    arrays = sorted((out / "data").glob("*.npy"))
    if not arrays:
        pytest.skip("of NPY arrays")
    path = arrays[0]
    whole = path.read_bytes()
    path.write_bytes(cut(whole, share))
    assert any(f"data/{path.name}: sha256" in line for line in wrong(out))
    path.unlink()
    assert any(f"data/{path.name}: file: found none" in line for line in wrong(out))


def test_a_latent_of_an_npy_array_that_no_row_names_is_named(out: Path) -> None:
    arrays = sorted(path.name for path in (out / "data").glob(f"{shard(out)}.*.npy"))
    if not arrays:
        pytest.skip("of NPY arrays")
    rewrite(out, shard(out), lambda rows, footer: rows.pop())
    assert f"data/{arrays[0]}: latents: found 3, expected those of 2 rows" in wrong(out)


def test_swapped_offsets_are_named(out: Path) -> None:
    rows = index_of(out, name := shard(out))
    rows[0]["byte_offset"], rows[1]["byte_offset"] = rows[1]["byte_offset"], rows[0]["byte_offset"]
    write_index(out, name, rows)
    lines = [line for line in wrong(out) if line.startswith(f"index/{name}.parquet")]
    assert [line.split(": ")[0] for line in lines] == [f"index/{name}.parquet row {i}" for i in (0, 1)]
    assert all("byte_offset: found" in line for line in lines)
    assert any(line.startswith(f"index.parquet: shard {name}: found other rows") for line in wrong(out))


@pytest.mark.parametrize(
    ("column", "value"), [("caption", "other"), ("byte_length", 3), ("id", "0" * 32), ("file", "x"), ("height", 1)]
)
def test_another_value_in_the_index_is_named(out: Path, column: str, value: object) -> None:
    rows = index_of(out, name := shard(out))
    rows[1][column] = value
    write_index(out, name, rows)
    assert any(line.startswith(f"index/{name}.parquet row 1: {column}: found {value}") for line in wrong(out))


def test_a_lost_row_of_the_index_is_named(out: Path) -> None:
    write_index(out, name := shard(out), index_of(out, shard(out))[:-1])
    assert f"index/{name}.parquet: rows: found 2, expected 3 as in data/{name}.parquet" in wrong(out)


def test_another_spec_json_is_named_field_by_field(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = json.loads((out / "spec.json").read_text())
    fields["latent"]["seed"] = 7
    (out / "spec.json").write_text(json.dumps(fields))
    lines = wrong(out)
    assert len(lines) == 2
    assert all("footer's Spec, latent.seed: found 0, expected 7 as in spec.json" in line for line in lines)
    assert main(["--output", str(out)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("wrong: 2 problems")


def test_a_lost_row_breaks_conservation(out: Path) -> None:
    rewrite(out, name := shard(out), lambda rows, footer: rows.pop())
    assert f"data/{name}.parquet: conservation: found 2 rows + 1 rejections, expected 4 planned clips" in wrong(out)


def test_a_lost_row_is_seen_as_a_gap_even_if_the_plan_is_adjusted(out: Path) -> None:
    def change(rows: Rows, footer: dict[str, Any]) -> None:
        rows.pop(0)
        footer["planned"] -= 1

    rewrite(out, name := shard(out), change)
    found = [line for line in wrong(out) if line.startswith("data/")]
    assert f"data/{name}.parquet: conservation: found neither row nor rejection, expected video 0 clip 0" in found


@pytest.mark.parametrize("kind", ["folder", *WRITERS])
def test_a_shard_with_fewer_videos_than_were_planned_is_named(tmp_path: Path, kind: str) -> None:
    """Even if nothing inside the shard contradicts anything else."""
    videos = tmp_path / "videos"
    videos.mkdir()
    names = ["a.mp4", "b.mp4", "c.mp4"]
    for name in names:
        (videos / name).write_bytes(bytes(video(33).payload or b""))
    source = videos
    if kind != "folder":
        WRITERS[kind](source := videos / f"t.{kind}", [{"video": name, "caption": "two\nlines"} for name in names])
    make_output(source, out := tmp_path / "out", CLIPS)
    assert wrong(out) == []

    def change(rows: Rows, footer: dict[str, Any]) -> None:
        footer["planned"] -= sum(row["video_index"] == 2 for row in rows)
        rows[:] = [row for row in rows if row["video_index"] < 2]

    (path,) = (out / "data").glob("*.parquet")
    rewrite(out, path.stem, change)
    name = f"data/{path.stem}.parquet"
    assert wrong(out) == [f"{name}: conservation: found neither row nor rejection, expected video 2 clip 0"]
    rewrite(out, path.stem, add_a_video)
    assert f"{name}: conservation: found 4 videos, expected 3 as in the plan" in wrong(out)


def add_a_video(rows: Rows, footer: dict[str, Any]) -> None:
    rows.extend([{**rows[0], "video_index": video} for video in (2, 3)])
    footer["planned"] = len(rows)


def test_a_lost_rejection_in_the_footer_breaks_conservation(out: Path) -> None:
    rewrite(out, name := shard(out), lambda rows, footer: footer["rejections"].clear())
    assert f"data/{name}.parquet: conservation: found 3 rows + 0 rejections, expected 4 planned clips" in wrong(out)


def test_a_row_that_stands_twice_is_named(out: Path) -> None:
    rewrite(out, name := shard(out), lambda rows, footer: rows.append(rows[2]))
    lines = wrong(out)
    assert any(f"data/{name}.parquet: conservation: found video 2 clip 0 2 times" in line for line in lines)
    assert any(f"data/{name}.parquet row 3: source order" in line for line in lines)


def test_rows_in_another_order_are_named(out: Path) -> None:
    rewrite(out, name := shard(out), lambda rows, footer: rows.reverse())
    assert any(f"data/{name}.parquet row 1: source order: found" in line for line in wrong(out))


@pytest.mark.parametrize(
    ("column", "value"),
    [("id", "0" * 32), ("latent_shape", [16, 3, 4, 5]), ("latent_dtype", "float16"), ("num_frames", 13), ("width", 96)],
)
def test_another_value_in_a_row_is_named(out: Path, column: str, value: object) -> None:
    rewrite(out, name := shard(out), lambda rows, footer: rows[1].update({column: value}))
    assert any(line.startswith(f"data/{name}.parquet row 1: ") and column in line for line in wrong(out))


def test_a_shard_under_another_name_too_is_named(out: Path) -> None:
    name = shard(out)
    shutil.copy(out / "data" / f"{name}.parquet", out / "data" / "copy.parquet")
    lines = wrong(out)
    assert "data/copy.parquet: shard: found copy, expected a shard of the plan" in lines
    assert f"data/copy.parquet: footer's shard: found {name}, expected copy" in lines
    assert sum(line.startswith("data/copy.parquet row ") and ": id: " in line for line in lines) == 3


@pytest.mark.parametrize("text", ["", "{}\n", None])
def test_another_line_of_rejections_is_named(out: Path, text: str | None) -> None:
    path = out / "rejected" / f"{shard(out)}.jsonl"
    whole = path.read_text()
    path.write_text(whole * 2 if text is None else text)
    (line,) = wrong(out)
    assert line.startswith(f"rejected/{path.name} row {int(text is None)}: rejection: found")
    path.unlink()
    assert len(wrong(out)) == 1


def test_nan_with_a_valid_checksum_is_named(out: Path) -> None:
    only_parquet(out)

    def change(rows: Rows, footer: dict[str, Any]) -> None:
        latent = np.frombuffer(rows[1]["latent"], "<u2").copy()
        latent[5] = 0x7FC0
        rows[1].update(latent=latent.tobytes(), latent_crc32=zlib.crc32(latent.tobytes()))

    rewrite(out, name := shard(out), change)
    assert wrong(out) == [f"data/{name}.parquet row 1: latent: found NaN or infinity, expected finite values"]


def test_a_lost_data_file_is_named_and_its_shard_remains(out: Path) -> None:
    (out / "data" / f"{(name := shard(out))}.parquet").unlink()
    lines = wrong(out)
    assert (
        f"data/{name}.parquet: file: found none, expected the data file that index/{name}.parquet was made of" in lines
    )
    assert f"{name} remains: planned, and not done yet" in notes(out)


def test_what_may_lag_is_a_note(out: Path, source: Path, tmp_path: Path) -> None:
    name = shard(out)
    seal(Storage(str(out)), [shard(out, "two")])
    assert notes(out) == ["index.parquet lacks 1 of 2 shards; the end of a run adds them"]
    for path in (f"index/{name}.parquet", f"rejected/{name}.jsonl", "index.parquet"):
        (out / path).unlink()
    assert wrong(out) == []
    assert len(notes(out)) == 3
    half = make_output(source / "*.tar", tmp_path / "half", CLIPS, limit=1)
    assert [note for checked in verify(half) for note in checked.notes] == [
        f"{shard(out, 'two')} remains: planned, and not done yet"
    ]


def test_rows_sealed_twice_or_of_no_shard_are_named(out: Path) -> None:
    one, two = shard(out), shard(out, "two")
    seal(Storage(str(out)), [one, two, one])
    assert wrong(out) == [f"index.parquet: shard {one}: found 2 times, expected once"]
    seal(Storage(str(out)), [one, one, two])
    assert wrong(out) == [f"index.parquet: shard {one}: found other rows, expected those of index/{one}.parquet"]
    seal(Storage(str(out)), [one, two])
    for folder in ("data", "index"):
        (out / folder / f"{two}.parquet").unlink()
    assert f"index.parquet: shard {two}: found rows, expected no rows: it has no data file" in wrong(out)


@pytest.mark.parametrize("path", ["index.parquet", "index", "plan"])
def test_a_damaged_file_beside_the_data_is_named(out: Path, path: str) -> None:
    file = out / path if path.endswith(".parquet") else sorted((out / path).iterdir())[0]
    file.write_bytes(cut(file.read_bytes(), 0.5))
    (line,) = wrong(out)
    assert line.startswith(path)


@pytest.mark.parametrize(("flag", "value"), [("--reencode", "-1"), ("--threads", "0"), ("--device", "tpu")])
def test_a_wrong_flag_exits_with_2(made: Path, flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(made), flag, value])
    assert stopped.value.code == 2
    assert flag.strip("-") in capsys.readouterr().err


def test_a_folder_that_is_no_output_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path)]) == 2
    assert "holds no spec.json" in capsys.readouterr().err
    (tmp_path / "spec.json").write_text("[]")
    assert main(["--output", str(tmp_path)]) == 2
    assert "spec.json is not a spec" in capsys.readouterr().err
