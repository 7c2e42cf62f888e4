"""The embeddings of one shard's captions, by the id of a row. See `latentmill text` for how they are made."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentmill.files import Files
from latentmill.format import text_path, text_places_of
from latentmill.ranges import Range, RangeReader
from pipeline.errors import ConfigError
from pipeline.export.trainer import Trainer
from pipeline.output.layout import text_of
from pipeline.storage import Storage
from pipeline.storage.parallel import in_parallel
from pipeline.text import spec as text_spec
from pipeline.text.spec import TextSpec

CONCURRENCY = 4
"""Embeddings that are read at a time."""


class ShardText:
    """The embeddings of a shard. Only the footer and the small columns of its text file are read at once."""

    def __init__(self, output: str, name: str, shard: str) -> None:
        files, path = Files(output), text_path(name, shard)
        self._reader = RangeReader(files, concurrency=CONCURRENCY)
        with files.open(path) as source:
            places = text_places_of(source)
        self._places: dict[str, dict[str, Any]] = {place["id"]: place | {"file": path} for place in places.to_pylist()}

    def lacks(self, ids: Collection[str]) -> int:
        """Return how many of these rows have no embedding: `latentmill text --drop-empty` leaves some out."""
        return sum(self._places[id]["byte_offset"] is None for id in ids)

    def read(self, id: str) -> Tensor:
        """Read the embedding [S, E] of a row.

        Raises:
            DamagedRowError: its bytes are not those that were written.
        """
        place = self._places[id]
        memory = np.empty(place["byte_length"], np.uint8)
        one = Range(place["file"], place["byte_offset"], place["byte_length"], place["embedding_crc32"], id)
        (done,) = self._reader.submit([one], [memory.data])
        done.result()
        return torch.from_numpy(memory).view(getattr(torch, place["embedding_dtype"])).view(*place["embedding_shape"])


def check_text(output: str, name: str, trainer: Trainer, pieces: dict[str, list[str]]) -> TextSpec:
    """Return the spec of a text that has an embedding for every row of an export.

    Args:
        pieces: the ids of the exported rows of each shard.

    Raises:
        ConfigError: there is no such text, it lacks rows, or the trainer cannot take it.
    """
    storage = Storage(output)
    spec = text_spec.load(storage, name)
    if spec is None:
        raise ConfigError(f"--text {name!r}: {output} has no such text; `latentmill text --name {name}` makes it")
    there = {entry.path for entry in storage.list(text_of(name))}
    missing = [shard for shard in pieces if text_path(name, shard) not in there]
    if missing:
        raise ConfigError(
            f"--text {name!r} lacks {len(missing)} of {len(pieces)} shards, such as {missing[0]}: "
            "run `latentmill text` again"
        )
    if spec.drop_empty:
        lacking = sum(in_parallel(lambda shard: ShardText(output, name, shard).lacks(pieces[shard]), pieces))
        if lacking:
            raise ConfigError(
                f"--text {name!r} has no embedding for {lacking} of {sum(map(len, pieces.values()))} rows, because it "
                "was made with --drop-empty; leave them out with --where 'caption != None'"
            )
    if trainer.text_step > 1 and spec.max_length % trainer.text_step:
        raise ConfigError(
            f"{trainer.title} takes prompts of a multiple of {trainer.text_step} tokens, and --text {name!r} has "
            f"--max-length {spec.max_length}"
        )
    if trainer.needs_caption and spec.caption_column != "caption":
        raise ConfigError(
            f"{trainer.title} finds an embedding by the caption, and --text {name!r} was made of "
            f"{spec.caption_column!r}"
        )
    return spec
