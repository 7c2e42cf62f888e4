"""One plan file: frozen shards as rows of Parquet, which the driver reads without their members.

The members of a group of files take kilobytes, and a plan may have a hundred thousand groups. So the driver reads every
column except `members`, and a shard carries only the place of its members (PlanPlace). The task that reads the shard
fetches that one row group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentmill import checksum
from latentmill.store.stream import READ_BYTES
from pipeline.errors import ConfigError, StorageError
from pipeline.shards import FileGroup, Members, PlanPlace, Retry, Shard, TableRange, parse_members
from pipeline.storage import Entry, Storage, open_uri
from pipeline.storage.addresses import folder_of, redacted
from pipeline.storage.range_file import open_parquet

ROWS_PER_GROUP = 256
"""A read task fetches and unpacks one row group: 256 shards of 64 files have about 2.5 MB of members."""

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("members", pa.large_string(), nullable=False),
        # Which of the run's sources, by position: within one, the paths of files rise.
        pa.field("source", pa.int32(), nullable=False),
        # Where a table's range ends, so that the next growth goes on there; 0 for all others.
        pa.field("stop", pa.int64(), nullable=False),
        # How many videos it holds, where the plan knows: of a tar and of a tar's rest only reading tells.
        pa.field("videos", pa.int64()),
    ]
)

_SHARD_COLUMNS = ["name", "kind", "uri", "size", "etag"]


def write_plan_file(shards: Iterable[tuple[int, Shard]], path: Path) -> int:
    """Write pairs of source position and shard to a local file as a stream. Return their number."""
    count = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for source, shard in shards:
            row = {name: getattr(shard, name) for name in _SHARD_COLUMNS} | {"members": shard.members_text}
            stop, videos = _extent(shard)
            rows.append({**row, "source": source, "stop": stop, "videos": videos})
            if len(rows) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                count, rows = count + len(rows), []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
        writer.add_key_value_metadata(checksum.MARK)
    with path.open("r+b") as file:
        checksum.stamp(file)
    return count + len(rows)


class PlanFile:
    """A plan file of the output, held as Arrow columns: about 200 bytes per shard.

    Raises:
        ConfigError: the file is damaged.
    """

    def __init__(self, output: Storage, entry: Entry) -> None:
        self.uri = output.address(entry.path)
        self._entry = entry
        try:
            _check_once(self.uri, entry.size, entry.etag)
            file = self._open()
            self.table = file.read(columns=[name for name in SCHEMA.names if name != "members"])
            self.table.validate(full=True)
            # All groups but the last are full, so a row's place follows from its number.
            if file.metadata.num_row_groups != -(-self.table.num_rows // ROWS_PER_GROUP):
                raise ValueError(f"{self.table.num_rows} rows in {file.metadata.num_row_groups} groups")
        except StorageError:
            raise
        except (checksum.DamagedError, pa.ArrowException, OSError, LookupError, ValueError) as error:
            raise ConfigError(
                f"{redacted(self.uri)} is damaged: {error}. Restore it: only the plan tells what data/ holds"
            ) from error

    def shards(self) -> Iterator[Shard]:
        """Yield the shards in order, with the places of their members."""
        number = 0
        for batch in self.table.select(_SHARD_COLUMNS).to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                place = PlanPlace(plan=self.uri, row_group=number // ROWS_PER_GROUP, row=number % ROWS_PER_GROUP)
                yield Shard(**row, members=None if row["kind"] in ("webdataset", "tar") else place)
                number += 1

    def num_videos(self) -> Iterator[tuple[str, int | None]]:
        """Yield each shard's name and number of videos; None if it is unknown before reading."""
        yield from zip(self.table["name"].to_pylist(), self.table["videos"].to_pylist(), strict=True)

    def groups(self, uri: str, source: int) -> Iterator[FileGroup]:
        """Yield the files of each shard of one folder and source, in order, reading one row group at a time."""
        for _, text in self._members_where({"uri": uri, "source": source, "kind": "files"}):
            group = parse_members("files", text)
            assert isinstance(group, FileGroup)
            yield group

    def retries(self) -> Iterator[tuple[str, Retry]]:
        """Yield name and members of each shard of kind "retry", in order, reading one row group at a time."""
        if pc.any(pc.equal(self.table["kind"], "retry")).as_py():
            for name, text in self._members_where({"kind": "retry"}):
                retry = parse_members("retry", text)
                assert isinstance(retry, Retry)
                yield name, retry

    def _members_where(self, wanted: dict[str, Any]) -> Iterator[tuple[str, str]]:
        file = self._open()
        for group in range(file.metadata.num_row_groups):
            rows = self.table.slice(group * ROWS_PER_GROUP, ROWS_PER_GROUP)
            facts = zip(*(rows.column(name).to_pylist() for name in wanted), strict=True)
            chosen = [index for index, fact in enumerate(facts) if fact == tuple(wanted.values())]
            if chosen:
                column = file.read_row_group(group, columns=["members"]).column("members")
                yield from ((rows["name"][index].as_py(), column[index].as_py()) for index in chosen)

    def _open(self) -> pq.ParquetFile:
        return open_parquet(self.uri, self._entry.size, self._entry.etag)


@lru_cache(maxsize=1024)
def _check_once(uri: str, size: int, etag: str) -> None:
    """Compare a plan file with its checksum. This reads the whole file, so it is done once per run."""
    output, path = open_uri(uri)
    head_bytes = max(0, size - checksum.TAIL_BYTES)
    tail = output.read(path, head_bytes, size, etag=etag)
    with output.stream(path, stop=head_bytes, etag=etag) as head:
        checksum.check(tail, iter(lambda: head.read(READ_BYTES), b"") if head_bytes else ())


def _extent(shard: Shard) -> tuple[int, int | None]:
    """Return where a table's range ends (otherwise 0), and the number of videos, if the plan knows it."""
    match shard.members:
        case FileGroup(videos=files):
            return 0, len(files)
        case TableRange(stop=stop, rows=rows):
            return stop, rows
        case Retry(videos=videos, rest=None):
            return 0, len(videos)
        case _:
            return 0, None


def load_members(shard: Shard) -> Members | None:
    """Return the members of a shard: its own, or those at its place in a plan file."""
    place = shard.members
    if not isinstance(place, PlanPlace):
        return place
    output, path = open_uri(place.plan)
    entry = output.entry(path)
    column = open_parquet(place.plan, entry.size, entry.etag).read_row_group(place.row_group, columns=["members"])
    members = parse_members(shard.kind, column.column("members")[place.row].as_py())
    if isinstance(members, Retry) and isinstance(before := members.of.members, PlanPlace):
        # The place of the shard before names a plan file of the same output, which lies where ours does.
        before = replace(before, plan=f"{folder_of(place.plan)}/{before.plan}")
        members = replace(members, of=replace(members.of, members=before))
    return members
