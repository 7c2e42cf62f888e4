"""List a source: turn a tar, a folder, a glob or a table into shards, in the order of its listing."""

from __future__ import annotations

import logging
from collections import Counter
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

log = logging.getLogger(__name__)

MOST_KINDS = 8
"""Kinds of ignored files that the log names."""

NO_MORE = -1
"""Result of `Planned.end_of`: this object gives no more shards."""


class Planned(Protocol):
    """The part of a source that is already in the plan."""

    def end_of(self, uri: str, entry: Entry) -> int | None:
        """Return None for a new tar or table, else the end of its last planned range (0 for a tar), or NO_MORE.

        Raises:
            ChangedError: the entry is not the object that was planned.
        """

    def videos_under(self, root: str) -> Iterator[ListedVideo]:
        """Yield the loose videos planned under the folder `root`, sorted by path."""

    def check_video(self, root: str, planned: ListedVideo, found: ListedVideo) -> None:
        """Compare a video with the plan. Raises as `end_of`."""


def list_source(uri: str, *, shard_size: int, planned: Planned | None = None) -> Iterator[Shard]:
    """Yield the shards of a source that are not planned yet, in the order of its listing, while it is listed.

    Args:
        uri: a tar; a table (.parquet, .jsonl, .ndjson, .csv); a video; a folder with tars or videos; a glob of these.
        shard_size: videos or rows per shard. A tar is always one shard.
        planned: the part that earlier runs planned; tables continue where it ends.

    Raises:
        ConfigError: there is no such object at `uri`.
        ChangedError: a planned object has changed.
    """
    if shard_size < 1:
        raise ConfigError(f"--shard-size must be at least 1, got {shard_size}")
    root, entries, containers = _find(normal_uri(uri))
    group: list[ListedVideo] = []
    found_any = False
    ignored: Counter[str] = Counter()
    for item, is_new in _compared(list_items(entries, containers, ignored), root, planned):
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
    if ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common(MOST_KINDS))
        log.warning("source=%s: %d files are ignored: %s", redacted(uri), ignored.total(), kinds)
    if not found_any:
        raise ConfigError(
            f"--source {redacted(uri)} has nothing to read. Expected a .tar, a table "
            f"({', '.join(sorted(TABLE_SUFFIXES))}), a video, a folder with tars or videos, or a glob of these"
        )


def _find(uri: str) -> tuple[str, Iterator[Entry], frozenset[str]]:
    """Return the folder that paths are relative to, the listing of `uri` in it, and the suffixes of allowed containers.

    A table is a source only if it is named directly: a table in a folder is usually about the folder's videos.
    """
    try:
        folder, name = open_uri(uri)
    except ConfigError:  # `uri` is a whole bucket
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
    """Return a single object; for a video, also its sidecars."""
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
    """Yield each item and whether it is new, by merging two sorted sequences without keeping them in memory."""
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
