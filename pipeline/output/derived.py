"""The files derived from a data file. They are made again if they are missing, damaged, or from another data file.

index/<shard>.parquet      every column except the bytes; its footer describes what it was made from (FOOTER_DERIVED)
rejected/<shard>.jsonl     the rejections of the footer, for people; absent if nothing was rejected
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentmill import checksum, format
from pipeline.errors import ConfigError, NotFoundError
from pipeline.output import layout
from pipeline.records import canonical_json
from pipeline.settings.spec import diff
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted

Derived = tuple[pa.Table, list[dict[str, Any]]]
"""(index, rejections)"""


class StaleError(Exception):
    """The derived files are missing, damaged, or made from another data file."""


def read_derived(output: Storage, shard: str, data_bytes: int | None = None) -> Derived:
    """Read the derived index and rejections of a committed shard.

    Args:
        data_bytes: current size of the data file, if known.

    Raises:
        StaleError: the derived files must be made again.
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
            raise StaleError(f"{layout.data_path(shard)} has {data_bytes} bytes, before {facts['data_bytes']}")
        lines = b"" if facts.get("rejected") == "" else _rejected(output, shard)
        if facts.get("rejected") not in (None, _digest(lines)):
            raise StaleError(f"{layout.rejected_path(shard)} differs from what was derived")
        return table.replace_schema_metadata(None), [json.loads(line) for line in lines.splitlines()]
    except (NotFoundError, checksum.DamagedError, ValueError, pa.ArrowException) as error:
        raise StaleError(str(error)) from error


def restored(output: Storage, shard: str, spec: str | None = None, data_bytes: int | None = None) -> Derived:
    """Read the same, and make it again first if it is stale. Raises the errors of `derive`."""
    try:
        return read_derived(output, shard, data_bytes)
    except StaleError:
        derive(output, shard, spec)
        return read_derived(output, shard)


def derive(output: Storage, shard: str, spec: str | None = None) -> None:
    """Make rejected/<shard>.jsonl and then index/<shard>.parquet from the data file. Repeatable.

    Args:
        spec: the Spec of the output; the data file must have the same one.

    Raises:
        ConfigError: the data file is damaged, or belongs to another shard or output.
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
    """Return the index and rejections of the bytes of a data file. Raises the errors of `derive`."""
    where = f"{redacted(output.uri)}: {layout.data_path(shard)}"
    remedy = "Restore it, or delete it and run again, which encodes its shard again"
    try:
        found, footer = format.footer_of(io.BytesIO(data))
        name, rejections = footer["shard"], footer["rejections"]
        index = format.index_of(io.BytesIO(data), shard)
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{where} is damaged: {str(error) or repr(error)}. {remedy}") from error
    if name != shard:
        raise ConfigError(f"{where} is the data file of {name}. {remedy}")
    if spec is not None and (differences := diff(found, spec)):
        fields = "; ".join(
            f"{one.field}: {one.ours} in this file, {one.theirs} in {layout.SPEC_PATH}" for one in differences
        )
        raise ConfigError(f"{where} was made with another spec: {fields}. {remedy}")
    return index, rejections


def _rejected(output: Storage, shard: str) -> bytes:
    try:
        return output.read(layout.rejected_path(shard))
    except NotFoundError:
        return b""


def _digest(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest() if lines else ""
