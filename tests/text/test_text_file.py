"""Laws of a text file: rows come back as they were written, equal captions share one byte range, bits are checked."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentmill import format
from pipeline.text import shard_file
from pipeline.text.records import Caption, Embedding

TEXTS = ["a", None, "b", "a", "", "a"]


def embedding(text: str | None) -> Embedding | None:
    if not text:
        return None
    length = ord(text) - ord("a") + 2
    values = np.random.default_rng(length).normal(size=(length, 3)).astype("<f4")
    return Embedding(payload=values.tobytes(), shape=(length, 3), dtype="float32", length=length, truncated=text == "b")


@pytest.fixture
def data() -> bytes:
    sink = io.BytesIO()
    captions = [Caption(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    shard_file.write(sink, '{"a":1}', "s-1", captions, embedding)
    return sink.getvalue()


def test_what_was_written_is_read(data: bytes) -> None:
    rows = list(shard_file.read(data))
    assert [row.id for row in rows] == [str(i) for i in range(len(TEXTS))]
    assert [row.embedding for row in rows] == [embedding(text) for text in TEXTS]
    assert [row.caption_sha256 for row in rows] == [Caption(id="", text=text).sha256 for text in TEXTS]
    assert format.text_spec_of(io.BytesIO(data)) == '{"a":1}'


def test_an_embedding_is_one_byte_range_that_equal_captions_share(data: bytes) -> None:
    places = format.text_places_of(io.BytesIO(data)).to_pylist()
    for place, text in zip(places, TEXTS, strict=True):
        expected = embedding(text)
        if expected is None:
            assert (place["byte_offset"], place["byte_length"], place["embedding_crc32"]) == (None, None, None)
            continue
        found = data[place["byte_offset"] :][: place["byte_length"]]
        assert found == expected.payload
        assert zlib.crc32(found) == place["embedding_crc32"]
    assert places[0]["byte_offset"] == places[3]["byte_offset"] == places[5]["byte_offset"]
    assert pq.read_table(io.BytesIO(data))["embedding"].null_count == len(TEXTS) - 2


def test_the_places_in_the_footer_are_those_of_the_file(data: bytes) -> None:
    file = pq.ParquetFile(io.BytesIO(data))
    places = format.text_places_of(io.BytesIO(data[200:])).to_pylist()
    names = [name for name in format.TEXT_PLACE.names if name in format.TEXT_SCHEMA.names]
    for row, place in zip(pq.read_table(io.BytesIO(data)).to_pylist(), places, strict=True):
        assert [place[name] for name in names] == [row[name] for name in names]
        if row["embedding_row"] is not None:
            chunk = file.metadata.row_group(row["embedding_row"]).column(file.metadata.num_columns - 1)
            assert place["byte_offset"] + place["byte_length"] == chunk.data_page_offset + chunk.total_compressed_size


def test_a_flipped_bit_is_found(data: bytes) -> None:
    place = format.text_places_of(io.BytesIO(data)).to_pylist()[0]
    damaged = bytearray(data)
    damaged[place["byte_offset"] + 3] ^= 1
    with pytest.raises(ValueError, match="row 0"):
        list(shard_file.read(bytes(damaged)))
