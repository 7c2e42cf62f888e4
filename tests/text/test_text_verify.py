"""Laws of verify and status: a sound text passes, every damage is named with its file and row."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.status import status, table
from jobs.verify import main
from latentmill import format
from pipeline.storage import Storage
from pipeline.text import shard_file
from pipeline.text.captions import read_captions
from pipeline.text.records import Caption, Embedding
from pipeline.verify.findings import Problem
from pipeline.verify.text import check_texts
from tests.reader.made import shard_names, write_output
from tests.text.made import write_text

Encoders = Callable[[str], Path]
SHARD = shard_names(1)[0]


@pytest.fixture
def out(encoders: Encoders, tmp_path: Path) -> Path:
    write_output(tmp_path, num_shards=2)
    write_text(tmp_path, encoders("t5"), max_length=16)
    return tmp_path


def problems(out: Path) -> list[Problem]:
    checked = list(check_texts(Storage(str(out)), set(shard_names(2))))
    return [problem for one in checked for problem in one.problems]


def test_a_sound_text_has_no_problem_and_is_counted(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(out) == []
    main(["--output", str(out)])
    assert "17 text embeddings" in capsys.readouterr().out


def test_a_text_with_dropped_rows_is_sound(encoders: Encoders, out: Path) -> None:
    write_text(out, encoders("t5"), name="dropped", drop_empty=True)
    assert problems(out) == []


def test_a_text_with_padding_tokens_is_sound(encoders: Encoders, out: Path) -> None:
    write_text(out, encoders("t5"), name="padded", max_length=9, pad_tokens=True)
    assert problems(out) == []


def test_an_unfinished_text_is_noted(out: Path) -> None:
    (out / format.text_path("t5", SHARD)).unlink()
    notes = [note for one in check_texts(Storage(str(out)), set(shard_names(2))) for note in one.notes]
    assert notes == ["text t5: 1 of 3 files remain; `latentmill text` makes them"]
    assert problems(out) == []


Change = Callable[[list[dict[str, Any]]], None]


def rewrite(out: Path, change: Callable[[list[Caption], dict[str | None, Embedding | None]], None]) -> None:
    """Write the text file of a shard again, sound in itself, with other captions or embeddings."""
    path = out / format.text_path("t5", SHARD)
    data = path.read_bytes()
    captions = read_captions(Storage(str(out)), SHARD, "caption")
    rows = zip(captions, shard_file.read(data), strict=True)
    made = {caption.text: row.embedding for caption, row in rows}
    change(captions, made)
    sink = io.BytesIO()
    shard_file.write(sink, format.text_spec_of(io.BytesIO(data)), SHARD, captions, made.__getitem__)
    path.write_bytes(sink.getvalue())


def another(made: dict[str | None, Embedding | None], text: str | None, **changes: Any) -> None:
    import dataclasses

    old = made[text]
    assert old
    made[text] = dataclasses.replace(old, **changes)


FIRST = "caption 0 of 000000"
NAN = b"\x00\x00\xc0\x7f"

DAMAGES: dict[str, tuple[Callable[[list[Caption], dict[str | None, Embedding | None]], None], str]] = {
    "another id": (lambda captions, _: captions.__setitem__(0, Caption(id="x", text=FIRST)), "id"),
    "a row less": (lambda captions, _: captions.pop(), "rows"),
    "dropped": (lambda _, made: made.update({None: None}), "embedding_row"),
    "too long": (lambda _, made: another(made, FIRST, length=17), "embedding_shape"),
    "not finite": (
        lambda _, made: another(made, FIRST, payload=NAN + made[FIRST].payload[4:]),  # type: ignore[union-attr]
        "embedding",
    ),
    "another dtype": (lambda _, made: another(made, FIRST, dtype="float16"), "embedding_dtype"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_belong_is_named(out: Path, damage: str) -> None:
    change, what = DAMAGES[damage]
    rewrite(out, change)
    found = problems(out)
    assert what in {problem.what for problem in found}
    assert {problem.file for problem in found} == {format.text_path("t5", SHARD)}


def test_another_caption_is_named(out: Path) -> None:
    def change(captions: list[Caption], made: dict[str | None, Embedding | None]) -> None:
        captions[0] = Caption(id=captions[0].id, text="another")
        made["another"] = made[FIRST]

    rewrite(out, change)
    assert [(problem.what, problem.row) for problem in problems(out)] == [("caption_sha256", 0)]


def test_a_flipped_bit_a_cut_and_a_stray_file_are_named(out: Path) -> None:
    path = out / format.text_path("t5", SHARD)
    whole = path.read_bytes()
    place = format.text_places_of(io.BytesIO(whole)).to_pylist()[0]
    flipped = bytearray(whole)
    flipped[place["byte_offset"] + 5] ^= 4
    path.write_bytes(flipped)
    assert {problem.what for problem in problems(out)} == {"embedding", "byte_offset"}
    path.write_bytes(whole[:-9])
    assert {problem.what for problem in problems(out)} == {"file"}
    path.write_bytes(whole)
    (out / format.text_path("t5", "stray-000000000000")).write_bytes(whole)
    assert [problem.expected for problem in problems(out)] == ["none: there is no data/stray-000000000000.parquet"]


def test_a_file_of_another_spec_is_named(out: Path) -> None:
    path = out / format.text_spec_path("t5")
    path.write_text(path.read_text().replace('"max_length": 16', '"max_length": 15'))
    assert {problem.what for problem in problems(out)} == {"footer"}
    path.write_text("{}")
    assert {problem.what for problem in problems(out)} == {"spec"}


def test_places_that_lie_are_named(out: Path) -> None:
    path = out / format.text_path("t5", SHARD)
    data = path.read_bytes()
    offset = format.text_places_of(io.BytesIO(data))["byte_offset"][0].as_py()
    path.write_bytes(data.replace(f'"byte_offset":[{offset},'.encode(), f'"byte_offset":[{offset + 1},'.encode()))
    assert [(problem.what, problem.row) for problem in problems(out)] == [("byte_offset", 0)]


def test_status_shows_each_text(out: Path) -> None:
    (out / format.text_path("t5", SHARD)).unlink()
    facts = status(Storage(str(out)))
    (text,) = facts["texts"]  # type: ignore[misc]
    assert (text["name"], text["done"], text["remaining"]) == ("t5", 2, 1)
    assert re.search("text t5 +2 shards done, 1 remaining.* clean none", table(facts))


def test_other_readers_read_a_text_file(out: Path) -> None:
    table = pq.read_table(out / format.text_path("t5", SHARD))
    assert table.schema.remove_metadata().equals(format.TEXT_SCHEMA)
    assert pa.types.is_large_binary(table.schema.field("embedding").type)
