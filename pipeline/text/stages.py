"""The three stages of a text as Ray Data calls them: a table of shards in, tables out. The module does not use Ray.

    read     claims a shard, and reads its captions
    encode   an actor: captions in, an embedding of each distinct caption out
    store    writes the text file of the shard, create-only; hands on a receipt

The file is built beside the encoder (1 ms a row of 0.8 MB), so that a GPU does not wait for it. A fault becomes a
receipt that leaves the shard open; it never ends the stream.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import pyarrow as pa

from latentmill.format import EMPTY
from pipeline.errors import EncoderError, LatentmillError, StorageError
from pipeline.guard.deadline import die
from pipeline.guard.starts import LastEncoderError, Seat, card_of, control, start_encoder
from pipeline.guard.strikes import MAX_STRIKES, attempt
from pipeline.output.layout import text_path
from pipeline.stages.tables import Shared
from pipeline.storage import Storage
from pipeline.text import shard_file
from pipeline.text.captions import read_captions
from pipeline.text.clean import cleaner
from pipeline.text.receipts import TextReceipt
from pipeline.text.records import Caption, Embedding
from pipeline.text.spec import TextSpec

log = logging.getLogger(__name__)

ROW_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("captions", pa.string()),
        ("facts", pa.string()),
        ("payload", pa.large_binary()),
        ("receipt", pa.string()),
    ]
)
"""What travels: a shard; then its captions as JSON; then also the facts of its embeddings as JSON, and their bytes one
after the other; at last, or if something failed, a receipt alone."""


START_SECONDS = 1800.0
"""Seconds after which the start of an encoder counts as a hang."""


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
                yield _row(shard, receipt=TextReceipt(shard=shard, state="elsewhere").to_json())
                continue
            captions = read_captions(stages.output, shard, stages.spec.caption_column)
        except Exception as error:  # any error leaves this shard open, and the other shards continue
            yield _failed(shard, error)
            continue
        yield _row(shard, captions=json.dumps([(caption.id, caption.text) for caption in captions]))


class EncodeActor:
    """The encode actor: it holds one encoder."""

    def __init__(self, stages: TextStages, shared: Shared, device: str, pool: int) -> None:
        """Start the encoder of a pool that begins with `pool` encoders; it raises what `start_encoder` raises."""
        self._stages, self._guard = stages, shared.guard
        self._seat = Seat(name=shared.guard.me(), card=card_of(device))
        make = partial(stages.make_encoder, device=device)
        self._end = ""
        try:
            self._encode = start_encoder(make, shared.guard, self._seat, pool, START_SECONDS)
        except LastEncoderError as error:
            self._end = str(error)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Encode the captions of each shard; receipts pass through."""
        for row in table.to_pylist():
            if row["receipt"]:
                yield _row(**row)
                continue
            if self._end:
                receipt = TextReceipt(shard=row["shard"], state="no encoder", message=self._end)
                yield _row(row["shard"], receipt=receipt.to_json())
                continue
            shard, started = row["shard"], time.perf_counter()
            try:
                with attempt(self._guard, f"{shard}/text") as strikes:
                    if strikes >= MAX_STRIKES:
                        self._prove()
                        raise EncoderError(f"{strikes} encoders died while they encoded it")
                    wanted = wanted_of(self._stages.spec, shard, captions_of(row))
                    made = encode_or_die(self._encode, shard, wanted)
            except Exception as error:  # as in `read`
                yield _failed(shard, error)
                continue
            seconds = time.perf_counter() - started
            facts = json.dumps([seconds, [[text, *facts_of(embedding)] for text, embedding in made.items()]])
            payload = b"".join(embedding.payload for embedding in made.values())
            yield _row(shard, row["captions"], facts, payload)

    def _prove(self) -> None:
        """Encode a text that is no caption: a card that dies of it is broken, and its encoder leaves the pool."""
        with control(self._guard, self._seat, "encoders die of any text as they do of captions"):
            encode_or_die(self._encode, "", {"a"})


def wanted_of(spec: TextSpec, shard: str, captions: Iterable[Caption]) -> set[str]:
    """Return the texts to encode: each distinct caption once. A missing caption is the empty prompt."""
    return {caption.text or "" for caption in captions if not is_dropped(spec, shard, caption.text)}


def is_dropped(spec: TextSpec, shard: str, text: str | None) -> bool:
    """Return whether a row gets no text: if the spec says so, those whose caption is missing, empty or white space."""
    return spec.drop_empty and shard != EMPTY and is_empty(spec, text)


def is_empty(spec: TextSpec, text: str | None) -> bool:
    """Return whether a caption is missing, or nothing but white space is left of it once it is clean."""
    return not cleaner(spec.clean)(text or "").strip()


def encode_or_die(encode: Encode, shard: str, texts: set[str]) -> dict[str, Embedding]:
    """Encode, or end this process if the device cannot continue: Ray restarts the actor, which tries again."""
    from pipeline.guard.device import is_of_the_device  # imported late: torch costs every worker seconds

    try:
        return encode(texts)
    except (RuntimeError, MemoryError) as error:
        if not is_of_the_device(error):
            raise
        log.error("shard=%s encoder dies: %s", shard, error)
        die()


def text_file(
    spec: TextSpec, shard: str, captions: list[Caption], made: Mapping[str, Embedding]
) -> tuple[bytes, TextReceipt]:
    """Return the text file of a shard, and its receipt, from the embedding of each text that is wanted."""

    def embedding_of(text: str | None) -> Embedding | None:
        return None if is_dropped(spec, shard, text) else made[text or ""]

    sink = io.BytesIO()
    shard_file.write(sink, spec.to_json(), shard, captions, embedding_of)
    embeddings = [embedding_of(caption.text) for caption in captions]
    num_empty = sum(is_empty(spec, caption.text) for caption in captions)
    receipt = TextReceipt(
        shard=shard,
        state="done",
        rows=len(captions),
        captions=len(made),
        filled=len(captions) - num_empty,
        empty=num_empty if shard != EMPTY else 0,
        tokens=sum(embedding.length for embedding in made.values()),
        truncated=sum(embedding is not None and embedding.truncated for embedding in embeddings),
        dropped=embeddings.count(None),
        num_bytes=sink.tell(),
    )
    return sink.getvalue(), receipt


def store(table: pa.Table, stages: TextStages, shared: Shared) -> Iterator[pa.Table]:
    """Write the file of each shard, give up the claim, and yield the receipts."""
    for row in table.to_pylist():
        shard = row["shard"]
        try:
            receipt = TextReceipt.from_json(row["receipt"]) if row["receipt"] else _stored(row, stages)
            if receipt.state != "elsewhere":
                shared.claims.release(shard)
        except Exception as error:  # as in `read`
            yield _failed(shard, error, is_write=isinstance(error, StorageError))
        else:
            yield _row(shard, receipt=receipt.to_json())


def _stored(row: dict[str, Any], stages: TextStages) -> TextReceipt:
    shard, payload = row["shard"], memoryview(row["payload"])
    seconds, facts = json.loads(row["facts"])
    made: dict[str, Embedding] = {}
    for text, num_bytes, shape, dtype, length, truncated in facts:
        made[text] = Embedding(
            payload=bytes(payload[:num_bytes]), shape=tuple(shape), dtype=dtype, length=length, truncated=truncated
        )
        payload = payload[num_bytes:]
    file, receipt = text_file(stages.spec, shard, captions_of(row), made)
    path = text_path(stages.name, shard)
    if not stages.output.create(path, file):
        log.warning("path=%s was committed by another run with other bytes; that file is kept", path)
    return replace(receipt, encode_seconds=seconds)


def facts_of(embedding: Embedding) -> tuple[int, tuple[int, int], str, int, bool]:
    """Return what an embedding is beside its bytes, their number first."""
    return len(embedding.payload), embedding.shape, embedding.dtype, embedding.length, embedding.truncated


def captions_of(row: Mapping[str, Any]) -> list[Caption]:
    """Return the captions of a row that travels."""
    return [Caption(id=id_, text=text) for id_, text in json.loads(row["captions"])]


def receipts(tables: Iterable[pa.Table]) -> Iterator[TextReceipt]:
    """Yield the receipts of the tables that come out of `store`. Raises EncoderError: no encoder is left."""
    for table in tables:
        for receipt in map(TextReceipt.from_json, table["receipt"].to_pylist()):
            if receipt.state == "no encoder":
                raise EncoderError(f"no encoder is left: {receipt.message}")
            yield receipt


def _failed(shard: str, error: Exception, *, is_write: bool = False) -> pa.Table:
    """Return the receipt that leaves a shard open. An error that is not ours is told with its type, and logged."""
    message = str(error)
    if not isinstance(error, LatentmillError):
        log.error("shard=%s", shard, exc_info=error)
        message = f"{type(error).__name__}: {error}"
    receipt = TextReceipt(shard=shard, state="open", message=message, is_write=is_write)
    return _row(shard, receipt=receipt.to_json())


def _row(
    shard: str,
    captions: str | None = None,
    facts: str | None = None,
    payload: bytes | None = None,
    receipt: str | None = None,
) -> pa.Table:
    values = (shard, captions, facts, payload, receipt)
    columns = [pa.array([value], type_) for value, type_ in zip(values, ROW_SCHEMA.types, strict=True)]
    return pa.Table.from_arrays(columns, schema=ROW_SCHEMA)
