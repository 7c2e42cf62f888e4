"""List a source: a tar, a folder, a glob or a table becomes shards, in the order of its listing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Protocol

from pipeline.errors import ConfigError, NotFoundError
from pipeline.shards import ListedVideo, Shard
from pipeline.sources.folders import (
    TABLE_SUFFIXES,
    TAR_SUFFIXES,
    files_shard,
    glob_matcher,
    list_items,
    tar_shard,
)
from pipeline.sources.samples import IMAGE_SUFFIXES, SIDECAR_SUFFIXES, VIDEO_SUFFIXES, suffix_of
from pipeline.sources.tables import list_table, table_end
from pipeline.storage import Entry, Storage, open_uri
from pipeline.storage.addresses import folder_of, normal_uri, redacted

NO_MORE = -1
"""For `Planned.end_of`: take nothing more from this object."""


class Planned(Protocol):
    """What the plan has already frozen of a source."""

    def end_of(self, uri: str, entry: Entry) -> int | None:
        """None: this tar or table is new. Else where its last range ends (a tar: 0), or NO_MORE.

        Raises:
            ChangedError: the entry is another object than the plan recorded.
        """

    def videos_under(self, root: str) -> Iterator[ListedVideo]:
        """The loose videos planned under the folder `root`, sorted by path."""

    def check_video(self, root: str, planned: ListedVideo, found: ListedVideo) -> None:
        """Compare a video with its record. Raises as `end_of`."""


def list_source(uri: str, *, shard_size: int, planned: Planned | None = None) -> Iterator[Shard]:
    """The shards of a source that are not planned yet, in the order of its listing, as the listing comes in.

    Args:
        uri: a tar; a table (.parquet, .jsonl, .ndjson, .csv); a video; a folder with tars or videos; a glob of these.
        shard_size: videos or rows of a shard. Tars are one shard each.
        planned: what earlier runs froze; tables go on where it ends.

    Raises:
        ConfigError: there is nothing of the kind at `uri`.
        ChangedError: a planned object is not what it was.
    """
    if shard_size < 1:
        raise ConfigError(f"--shard-size must be at least 1, got {shard_size}")
    root, entries, containers = _find(normal_uri(uri))
    group: list[ListedVideo] = []
    found_any = False
    for item, is_new in _compared(list_items(entries, containers), root, planned):
        found_any = True
        if isinstance(item, Entry):
            yield from _container(f"{root.rstrip('/')}/{item.path}", item, shard_size, planned)
        elif is_new:
            group.append(item)
            if len(group) == shard_size:
                yield files_shard(root, group)
                group = []
    if group:
        yield files_shard(root, group)
    if not found_any:
        raise ConfigError(
            f"--source {redacted(uri)} holds nothing to read. Looked for a .tar, a table "
            f"({', '.join(sorted(TABLE_SUFFIXES))}), a video, a folder with tars or videos, or a glob of these"
        )


def _find(uri: str) -> tuple[str, Iterator[Entry], frozenset[str]]:
    """The folder that paths are relative to, the listing of what `uri` means in it, and what may be a shard there.

    A table is a source where it is named: in a folder it is, as a rule, about the folder's videos.
    """
    try:
        folder, name = open_uri(uri)
    except ConfigError:  # a whole bucket
        return uri, Storage(uri).list(), TAR_SUFFIXES
    first = next(folder.list(name), None)
    if first is not None and first.path == name:
        return folder.uri, iter(_with_sidecars(folder, first)), TAR_SUFFIXES | TABLE_SUFFIXES
    if first is not None:
        return uri, Storage(uri).list(), TAR_SUFFIXES
    if (position := min((uri.find(sign) for sign in "*?[" if sign in uri), default=-1)) < 0:
        return uri, iter(()), TAR_SUFFIXES
    root = folder_of(uri[: position + 1])
    matches = glob_matcher(uri[len(root.rstrip("/")) + 1 :])
    entries = (entry for entry in Storage(root).list() if matches(entry.path))
    return root, entries, TAR_SUFFIXES | (TABLE_SUFFIXES & {suffix_of(uri)})


def _with_sidecars(folder: Storage, entry: Entry) -> list[Entry]:
    """A single object; a video comes with its sidecars."""
    found = [entry]
    if suffix_of(entry.path) in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        for suffix in SIDECAR_SUFFIXES:
            try:
                found.append(folder.entry(str(PurePosixPath(entry.path).with_suffix(suffix))))
            except NotFoundError:
                continue
    return sorted(found)


def _compared(
    items: Iterator[ListedVideo | Entry], root: str, planned: Planned | None
) -> Iterator[tuple[ListedVideo | Entry, bool]]:
    """Each item, and whether it is new: a merge of two sorted sequences, so nothing is held."""
    records = planned.videos_under(root) if planned else iter(())
    record = next(records, None)
    for item in items:
        if isinstance(item, Entry):
            yield item, True
            continue
        while record is not None and record.path < item.path:
            record = next(records, None)
        is_new = record is None or record.path != item.path
        if planned and record and not is_new:
            planned.check_video(root, record, item)
        yield item, is_new


def _container(uri: str, entry: Entry, shard_size: int, planned: Planned | None) -> Iterator[Shard]:
    end = planned.end_of(uri, entry) if planned else None
    if end == NO_MORE:
        return
    if suffix_of(uri) not in TABLE_SUFFIXES:
        if end is None:
            yield tar_shard(uri, entry)
    elif end is None or end < table_end(uri, entry):
        yield from list_table(uri, entry, shard_size=shard_size, start=end or 0)
