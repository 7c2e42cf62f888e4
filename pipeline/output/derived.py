"""What is derived of a data file, and made again from it where it is missing, damaged, or of another data file.

index/<shard>.parquet      every column but the bytes; its footer says of what it was made (FOOTER_DERIVED)
rejected/<shard>.jsonl     the footer's rejections, for people; none where nothing was rejected
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentmill import format
from pipeline.errors import ConfigError, NotFoundError
from pipeline.output import layout
from pipeline.records import canonical_json
from pipeline.settings.spec import diff
from pipeline.storage import Storage, checksum
from pipeline.storage.addresses import redacted

Derived = tuple[pa.Table, list[dict[str, Any]]]
"""(index, rejections)"""


class StaleError(Exception):
    """What is derived is missing, damaged, or of another data file."""


def read_derived(output: Storage, shard: str, data_bytes: int | None = None) -> Derived:
    """Index and rejections of a committed shard, as they were derived.

    Args:
        data_bytes: of the data file as it is now, where known.

    Raises:
        StaleError: they are to be made again.
    """
    try:
        index = output.read(layout.index_path(shard))
        checksum.check(index[-checksum.TAIL_BYTES :], [index[: -checksum.TAIL_BYTES]])
        file = pq.ParquetFile(io.BytesIO(index))
        table, facts = (
            file.read(),
            json.loads((file.metadata.metadata or {}).get(format.FOOTER_DERIVED.encode(), b"{}")),
        )
        if data_bytes is not None and facts.get("data_bytes", data_bytes) != data_bytes:
            raise StaleError(f"{layout.data_path(shard)} has {data_bytes} bytes, and had {facts['data_bytes']}")
        lines = b"" if facts.get("rejected") == "" else _rejected(output, shard)
        if facts.get("rejected") not in (None, _digest(lines)):
            raise StaleError(f"{layout.rejected_path(shard)} is not what was derived")
        return table.replace_schema_metadata(None), [json.loads(line) for line in lines.splitlines()]
    except (NotFoundError, checksum.DamagedError, ValueError, pa.ArrowException) as error:
        raise StaleError(str(error)) from error


def restored(output: Storage, shard: str, spec: str | None = None, data_bytes: int | None = None) -> Derived:
    """The same, made again where it is stale. Raises as `derive`."""
    try:
        return read_derived(output, shard, data_bytes)
    except StaleError:
        derive(output, shard, spec)
        return read_derived(output, shard)


def derive(output: Storage, shard: str, spec: str | None = None) -> None:
    """Make rejected/<shard>.jsonl and, last, index/<shard>.parquet out of the data file. Repeatable.

    Args:
        spec: that of the output, which the data file must have, too.

    Raises:
        ConfigError: the data file is damaged, or not that of this shard and output.
    """
    data = output.read(layout.data_path(shard))
    table, rejections = from_data(output, shard, data, spec)
    lines = "".join(json.dumps(rejection) + "\n" for rejection in rejections).encode()
    if lines:
        output.put(layout.rejected_path(shard), lines)
    facts = {"data_bytes": len(data), "rejected": _digest(lines)}
    index = io.BytesIO()
    with pq.ParquetWriter(index, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({format.FOOTER_DERIVED: canonical_json(facts)})
        writer.add_key_value_metadata(checksum.MARK)
    checksum.stamp(index)
    output.put(layout.index_path(shard), index.getvalue())


def from_data(output: Storage, shard: str, data: bytes, spec: str | None = None) -> Derived:
    """What is to be derived of the bytes of a data file. Raises as `derive`."""
    where = f"{redacted(output.uri)}: {layout.data_path(shard)}"
    remedy = "Restore it, or delete it and run again: then its shard is encoded again"
    try:
        found, footer = format.footer_of(io.BytesIO(data))
        name, rejections = footer["shard"], footer["rejections"]
        index = format.index_of(io.BytesIO(data), shard)
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{where} is damaged: {str(error) or repr(error)}. {remedy}") from error
    if name != shard:
        raise ConfigError(f"{where} is the data file of {name}. {remedy}")
    if spec is not None and (differences := diff(found, spec)):
        fields = "; ".join(f"{one.field}: {one.ours} here, {one.theirs} there" for one in differences)
        raise ConfigError(f"{where} was made with another spec: {fields}. {remedy}")
    return index, rejections


def _rejected(output: Storage, shard: str) -> bytes:
    try:
        return output.read(layout.rejected_path(shard))
    except NotFoundError:
        return b""


def _digest(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest() if lines else ""
