"""The text file of one shard: `write` makes it, `read` yields its rows. `latentmill.format` defines names and types.

    text/NAME/<shard>.parquet     EXISTS = DONE
    text/NAME/empty.parquet       the empty prompt, in the same form

The bytes depend on the captions of the shard and the TextSpec only. Rows with equal captions share one embedding: the
first of them holds it, and `embedding_row` of the others names that row. As in a data file, each row has a row group of
its own, the embedding is not compressed, and each page holds one value, so an embedding is one exact byte range. It is
the last column, so that it ends where its row group ends: the writer knows its place, and the footer names it.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentmill.format import FOOTER_PLACES, FOOTER_SHARD, FOOTER_TEXT, TEXT_PLACE, TEXT_SCHEMA
from pipeline.records import canonical_json
from pipeline.text.records import Caption, Embedding, TextRow

_COMPRESSION = {
    ("embedding_shape.list.element" if name == "embedding_shape" else name): "none" if name == "embedding" else "zstd"
    for name in TEXT_SCHEMA.names
}


def write(
    sink: IO[bytes],
    spec: str,
    shard: str,
    captions: Iterable[Caption],
    embedding_of: Callable[[str | None], Embedding | None],
) -> None:
    """Write the text file of a shard.

    Args:
        spec: the TextSpec as canonical JSON.
        captions: the caption of each row of the data file, in its order.
        embedding_of: gives the embedding of a caption; None drops it. It is called once for each caption.
    """
    facts: dict[str | None, dict[str, Any]] = {}
    places: dict[str, list[Any]] = {name: [] for name in TEXT_PLACE.names}
    with pq.ParquetWriter(
        sink,
        TEXT_SCHEMA,
        compression=_COMPRESSION,
        use_dictionary=False,
        write_statistics=["id"],
        write_batch_size=1,
        data_page_version="1.0",
        version="2.6",
    ) as writer:
        for number, caption in enumerate(captions):
            payload = None
            if caption.text not in facts:
                embedding = embedding_of(caption.text)
                payload = embedding and embedding.payload
                facts[caption.text] = _facts(embedding, number)
            row: dict[str, Any] = {"id": caption.id, "caption_sha256": caption.sha256, "embedding": payload}
            row |= facts[caption.text]
            columns = [pa.array([row[field.name]], field.type) for field in TEXT_SCHEMA]
            writer.write_table(pa.Table.from_arrays(columns, schema=TEXT_SCHEMA))
            if payload:
                facts[caption.text] |= {"byte_offset": sink.tell() - len(payload), "byte_length": len(payload)}
            for name, values in places.items():
                values.append(row[name] if name in row else facts[caption.text].get(name))
        footer = {FOOTER_TEXT: spec, FOOTER_SHARD: canonical_json({"shard": shard})}
        writer.add_key_value_metadata(footer | {FOOTER_PLACES: json.dumps(places, separators=(",", ":"))})
    sink.flush()


def read(data: bytes) -> Iterator[TextRow]:
    """Yield the rows of the bytes of a text file, in order. Rows with equal captions share one Embedding.

    Raises:
        ValueError: an embedding is not the one that was written.
    """
    file = pq.ParquetFile(io.BytesIO(data))
    found: dict[int, Embedding] = {}
    for number in range(file.num_row_groups):
        row = file.read_row_group(number).to_pylist()[0]
        place = row["embedding_row"]
        if place == number:
            if row["embedding"] is None or zlib.crc32(row["embedding"]) != row["embedding_crc32"]:
                raise ValueError(f"row {number}: the embedding is not the one that was written")
            found[number] = Embedding(
                payload=row["embedding"],
                shape=tuple(row["embedding_shape"]),
                dtype=row["embedding_dtype"],
                length=row["length"],
                truncated=row["truncated"],
            )
        if place is not None and place not in found:
            raise ValueError(f"row {number}: embedding_row {place} has no embedding")
        embedding = None if place is None else found[place]
        yield TextRow(id=row["id"], caption_sha256=row["caption_sha256"], embedding=embedding)


def _facts(embedding: Embedding | None, number: int) -> dict[str, Any]:
    """Return the columns that rows with the same caption share."""
    if embedding is None:
        names = ("embedding_shape", "embedding_dtype", "embedding_crc32", "embedding_row")
        return dict.fromkeys(names) | {"length": 0, "truncated": False}
    return {
        "embedding_shape": embedding.shape,
        "embedding_dtype": embedding.dtype,
        "embedding_crc32": zlib.crc32(embedding.payload),
        "embedding_row": number,
        "length": embedding.length,
        "truncated": embedding.truncated,
    }
