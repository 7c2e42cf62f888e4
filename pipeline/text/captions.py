"""The captions of a committed shard, read from its index; and which shards of a text are open."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa

from latentmill.format import EMPTY
from pipeline.errors import ConfigError
from pipeline.output.derived import StaleError, from_data, read_derived
from pipeline.output.layout import DATA, TEXT, data_path, list_shards, text_of
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted
from pipeline.text.records import Caption

COLUMNS = ("caption", "key")
"""The columns of a row that may be encoded; other names are fields of its `extra_json`."""


def open_shards(output: Storage, name: str) -> tuple[list[str], int]:
    """Return the shards whose text is not there, sorted, and how many are. EMPTY, the empty prompt, counts as one."""
    done = {shard for shard, _ in list_shards(output, text_of(name))}  # first: another run may commit meanwhile
    every = {EMPTY, *(shard for shard, _ in list_shards(output, DATA))}
    return sorted(every - done), len(every & done)


def text_names(output: Storage) -> list[str]:
    """Return the names of the texts of an output, sorted."""
    return sorted({entry.path.split("/")[1] for entry in output.list(TEXT) if entry.path.count("/") > 1})


def read_index(output: Storage, shard: str) -> pa.Table:
    """Return the index of a committed shard; from its data file if it is missing or damaged. Writes nothing."""
    try:
        return read_derived(output, shard)[0]
    except StaleError:
        return from_data(output, shard, output.read(data_path(shard)))[0]


def read_captions(output: Storage, shard: str, column: str) -> list[Caption]:
    """Return the caption of each row of a shard, in the order of its data file; for EMPTY, the empty prompt.

    Raises:
        ConfigError: the data file is damaged, or a field of `extra_json` holds something else than a text.
    """
    if shard == EMPTY:
        return [Caption(id="", text="")]
    index = read_index(output, shard)
    ids = index["id"].to_pylist()
    captions = []
    for id_, value in zip(ids, values_of(index, column), strict=True):
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"--caption-column {column}: row {id_} has {value!r}, which is no text")
        captions.append(Caption(id=id_, text=value))
    return captions


def check_column(output: Storage, shards: Iterable[str], column: str) -> None:
    """Look for the column in the first shard that has rows.

    Raises:
        ConfigError: none of its rows has it.
    """
    if column in COLUMNS:
        return
    for shard in shards:
        if shard == EMPTY or not len(index := read_index(output, shard)):
            continue
        fields = {name for extra in index["extra_json"].to_pylist() for name in json.loads(extra)}
        if column not in fields:
            raise ConfigError(
                f"--caption-column must be one of {', '.join((*COLUMNS, *sorted(fields)))}, got {column!r}: no row of "
                f"shard {shard} of {redacted(output.uri)} has it"
            )
        return


def values_of(index: pa.Table, column: str) -> list[object]:
    """Return a column of an index, or a field of its `extra_json`."""
    if column in COLUMNS:
        return list(index[column].to_pylist())
    return [json.loads(extra).get(column) for extra in index["extra_json"].to_pylist()]
