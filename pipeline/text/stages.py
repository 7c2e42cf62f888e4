"""The three stages of a text as Ray Data calls them: a table of shards in, tables out. The module does not use Ray.

    read     claims a shard, and reads its captions
    encode   an actor: captions in, the bytes of the text file out
    store    puts the file, create-only; hands on a receipt

A fault becomes a receipt that leaves the shard open; it never ends the stream.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from latentmill.format import EMPTY
from pipeline.errors import ConfigError, EncoderError, StorageError
from pipeline.guard.deadline import die
from pipeline.guard.strikes import MAX_STRIKES, attempt
from pipeline.output.layout import text_path
from pipeline.stages.tables import Shared
from pipeline.storage import Storage
from pipeline.text import shard_file
from pipeline.text.captions import read_captions
from pipeline.text.receipts import TextReceipt
from pipeline.text.records import Caption, Embedding, NonfiniteTextError
from pipeline.text.spec import TextSpec

log = logging.getLogger(__name__)

ROW_SCHEMA = pa.schema(
    [("shard", pa.string()), ("captions", pa.string()), ("file", pa.large_binary()), ("receipt", pa.string())]
)
"""What travels: a shard, then its captions as JSON, then its file; and a receipt with the file, or in place of it."""


class Encode(Protocol):
    """Return the embedding of each distinct caption."""

    def __call__(self, captions: Iterable[str]) -> dict[str, Embedding]: ...


class MakeEncoder(Protocol):
    """Start an encoder on a device, "cpu" or "cuda"."""

    def __call__(self, *, device: str) -> Encode: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStages:
    """What the stages need. It pickles, because every worker gets it."""

    output: Storage
    name: str
    spec: TextSpec
    make_encoder: MakeEncoder


def load_encoder(*args: Any, **kwargs: Any) -> Encode:
    """Make the TextEncoder. It is imported late, because torch and transformers cost every worker seconds."""
    from pipeline.text.encoder import TextEncoder

    return TextEncoder(*args, **kwargs)


def read(table: pa.Table, stages: TextStages, shared: Shared) -> Iterator[pa.Table]:
    """Claim each shard and read its captions, unless another run holds it."""
    for shard in table["shard"].to_pylist():
        try:
            if not shared.claims.take(shard):
                yield _row(shard, receipt=TextReceipt(shard=shard, state="elsewhere"))
                continue
            captions = read_captions(stages.output, shard, stages.spec.caption_column)
        except (StorageError, ConfigError) as error:
            yield _row(shard, receipt=TextReceipt(shard=shard, state="open", message=str(error)))
            continue
        yield _row(shard, captions=json.dumps([(caption.id, caption.text) for caption in captions]))


class EncodeActor:
    """The encode actor: it holds one encoder."""

    def __init__(self, stages: TextStages, shared: Shared, device: str, pool: int) -> None:
        """Start the encoder of a pool of `pool` encoders.

        Raises:
            EncoderError: MAX_STRIKES encoders in a row died while they started. Ray would restart them for ever.
        """
        if (deaths := shared.guard.starting() - pool) >= MAX_STRIKES:
            raise EncoderError(f"{deaths} encoders in a row died while they started: is there memory for the model?")
        self._stages, self._guard = stages, shared.guard
        self._encode = stages.make_encoder(device=device)
        shared.guard.started()

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Encode the captions of each shard; receipts pass through."""
        for row in table.drop_columns(["file"]).to_pylist():
            shard = row["shard"]
            if row["receipt"]:
                yield _row(shard, receipt=TextReceipt.from_json(row["receipt"]))
                continue
            captions = [Caption(id=id_, text=text) for id_, text in json.loads(row["captions"])]
            try:
                with attempt(self._guard, f"{shard}/text") as strikes:
                    if strikes >= MAX_STRIKES:
                        raise EncoderError(f"{strikes} encoders died while they encoded it")
                    file, receipt = encode_or_die(self._encode, self._stages.spec, shard, captions)
            except (EncoderError, NonfiniteTextError) as error:
                yield _row(shard, receipt=TextReceipt(shard=shard, state="open", message=str(error)))
                continue
            yield _row(shard, file=file, receipt=receipt)


def encode_or_die(encode: Encode, spec: TextSpec, shard: str, captions: list[Caption]) -> tuple[bytes, TextReceipt]:
    """Encode a shard, or end this process if the device cannot continue: Ray restarts the actor, which tries again."""
    from pipeline.stages.encode_chunk import is_of_the_device

    try:
        return encode_shard(encode, spec, shard, captions)
    except (RuntimeError, MemoryError) as error:
        if not is_of_the_device(error):
            raise
        log.error("shard=%s encoder dies: %s", shard, error)
        die()


def encode_shard(encode: Encode, spec: TextSpec, shard: str, captions: list[Caption]) -> tuple[bytes, TextReceipt]:
    """Return the text file of a shard, and its receipt.

    Each distinct caption is encoded once. A missing caption is the empty prompt, unless the spec drops both.
    """
    started = time.perf_counter()
    drops = spec.drop_empty and shard != EMPTY
    wanted = {caption.text or "" for caption in captions if not (drops and is_empty(caption.text))}
    made = encode(wanted)

    def embedding_of(text: str | None) -> Embedding | None:
        return None if drops and is_empty(text) else made[text or ""]

    sink = io.BytesIO()
    shard_file.write(sink, spec.to_json(), shard, captions, embedding_of)
    embeddings = [embedding_of(caption.text) for caption in captions]
    receipt = TextReceipt(
        shard=shard,
        state="done",
        rows=len(captions),
        captions=len(made),
        tokens=sum(embedding.length for embedding in made.values()),
        truncated=sum(embedding is not None and embedding.truncated for embedding in embeddings),
        dropped=embeddings.count(None),
        num_bytes=sink.tell(),
        encode_seconds=time.perf_counter() - started,
    )
    return sink.getvalue(), receipt


def is_empty(text: str | None) -> bool:
    """Return whether --drop-empty leaves out rows with this caption."""
    return not (text or "").strip()


def store(table: pa.Table, stages: TextStages, shared: Shared) -> Iterator[pa.Table]:
    """Put each file, give up the claim, and yield the receipts."""
    for row in table.to_pylist():
        receipt = TextReceipt.from_json(row["receipt"])
        try:
            if row["file"] is not None:
                path = text_path(stages.name, row["shard"])
                if not stages.output.create(path, row["file"]):
                    log.warning("path=%s was committed by another run with other bytes; that file is kept", path)
            if receipt.state != "elsewhere":
                shared.claims.release(row["shard"])
        except StorageError as error:
            receipt = TextReceipt(shard=row["shard"], state="open", message=str(error), is_write=True)
        yield _row(row["shard"], receipt=receipt)


def receipts(tables: Iterable[pa.Table]) -> Iterator[TextReceipt]:
    """Yield the receipts of the tables that come out of `store`."""
    for table in tables:
        yield from map(TextReceipt.from_json, table["receipt"].to_pylist())


def _row(
    shard: str, *, captions: str | None = None, file: bytes | None = None, receipt: TextReceipt | None = None
) -> pa.Table:
    values = ([shard], [captions], [file], [receipt and receipt.to_json()])
    columns = [pa.array(value, type_) for value, type_ in zip(values, ROW_SCHEMA.types, strict=True)]
    return pa.Table.from_arrays(columns, schema=ROW_SCHEMA)
