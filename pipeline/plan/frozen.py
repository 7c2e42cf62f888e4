"""The plan: which shards exist (frozen), which are done, and what is staged for the others.

    plan/000000.parquet ...   one file for each time that the sources grew, create-only; shards are never regrouped
    data/<shard>.parquet      exists = done: one LIST
    _staging/<shard>/...      parts and verdicts that an interrupted run left: one LIST

The driver holds one row per shard and one name per done shard; members stay in the plan files (see plan_file.py).
"""

from __future__ import annotations

import heapq
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ChangedError, ConfigError, StorageError
from pipeline.output import layout
from pipeline.output.tally import Target
from pipeline.plan.plan_file import PlanFile, write_plan_file
from pipeline.plan.retries import retry_shards, tried_again
from pipeline.plan.staged import list_staged
from pipeline.shards import NOTHING_STAGED, ListedVideo, Shard, Staged
from pipeline.sources.listing import NO_MORE, list_source
from pipeline.storage import Entry, Storage
from pipeline.storage.addresses import normal_uri, redacted

log = logging.getLogger(__name__)

PLAN_RACES = 20
"""How often another run may extend the plan first before this run gives up."""

OnChanged = Literal["refuse", "keep"]
"""What to do if a planned object has changed: refuse to run, or keep the plan. Done shards stay done; an open shard
with a changed object cannot be read and stays open."""


class Plan:
    """The frozen shards of an output and their state. Iterating yields all shards in the order of planning."""

    def __init__(
        self, files: Sequence[PlanFile], data_bytes: dict[str, int], staged: dict[str, Staged], limit: int | None
    ) -> None:
        self._files = files
        self._limit = limit
        self.data_bytes = data_bytes
        """Sizes of the data files that exist, by shard."""
        self.done = done = set(data_bytes)
        """Names of the shards whose data file exists."""
        self._staged = {name: parts for name, parts in staged.items() if name not in done}
        self.leftovers = tuple(sorted(staged.keys() & done))
        """Done shards that still have files under `_staging/`."""
        self.num_shards = self.num_bytes = self.num_remaining = self.remaining_bytes = 0
        for shard in self:
            is_open = shard.name not in done
            self.num_shards += 1
            self.num_bytes += shard.size
            self.num_remaining += is_open
            self.remaining_bytes += shard.size * is_open

    def __iter__(self) -> Iterator[Shard]:
        return islice((shard for file in self._files for shard in file.shards()), self._limit)

    def remaining(self) -> Iterator[Shard]:
        """Yield the shards without a data file, each with what is staged of it."""
        for shard in self:
            if shard.name not in self.done:
                yield replace(shard, staged=self._staged.get(shard.name, NOTHING_STAGED))

    def num_videos(self) -> dict[str, int]:
        """Return the number of videos of each shard for which the plan knows it: all except tars."""
        found = (pair for file in self._files for pair in file.num_videos())
        return {name: count for name, count in found if count is not None}

    def superseded(self, done: set[str]) -> Mapping[str, set[Target]]:
        """Return the rejections that a done retry has replaced, by the shard that holds them."""
        return tried_again(self._files, done)


def make_plan(
    output: Storage,
    sources: Sequence[str],
    *,
    shard_size: int = 64,
    limit: int | None = None,
    on_changed: OnChanged = "refuse",
) -> Plan:
    """Freeze new shards of the sources, and return the plan with what is done and what is staged.

    Args:
        output: root of the output.
        sources: tars, folders, globs, tables; see sources.list_source.
        shard_size: videos or rows of a new shard.
        limit: use only this many shards from the start of the plan, and list no further.
        on_changed: see OnChanged.

    Raises:
        ConfigError: a source holds nothing to read, a plan file is damaged, or data/ holds a shard of no plan file.
        ChangedError: a planned object has changed.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1 shard, got {limit}")
    done = _list_done(output)  # before the plan: another run may plan and commit meanwhile
    files = _grow(output, sources, shard_size, limit, on_changed, done)
    return Plan(files, done, list_staged(output), limit)


def plan_dry_run(
    output: Storage,
    sources: Sequence[str],
    *,
    shard_size: int = 64,
    limit: int | None = None,
    on_changed: OnChanged = "refuse",
) -> Iterator[Shard]:
    """Yield the shards of the plan that `make_plan` would make: planned ones, then new ones. Writes nothing."""
    done = _list_done(output)
    files = _plan_files(output)
    _refuse_strangers(output, files, done)
    frozen = (shard for file in files for shard in file.shards())
    new = (shard for _, shard in _new_shards(files, sources, shard_size, on_changed))
    return islice(chain(frozen, new), limit)


def plan_retries(output: Storage, reasons: frozenset[str]) -> Plan:
    """Freeze the rejections with one of the reasons as new shards, each rejection once. Return the plan with them.

    `tidy` must have derived the indexes of the committed shards before.
    """
    done = _list_done(output)
    _append(output, lambda files: ((0, shard) for shard in retry_shards(output, files, set(done), reasons)), done)
    return read_plan(output)


def plan_more(output: Storage, new_shards: Callable[[Sequence[PlanFile]], Iterator[Shard]]) -> Plan:
    """Freeze the shards that `new_shards` gives for the existing plan files, and return the plan with them."""
    _append(output, lambda files: ((0, shard) for shard in new_shards(files)), _list_done(output))
    return read_plan(output)


def read_plan(output: Storage) -> Plan:
    """Return the plan as it stands, without listing the sources."""
    return Plan(_plan_files(output), _list_done(output), list_staged(output), None)


def _grow(
    output: Storage,
    sources: Sequence[str],
    shard_size: int,
    limit: int | None,
    on_changed: OnChanged,
    done: Collection[str],
) -> list[PlanFile]:
    def new_shards(files: Sequence[PlanFile]) -> Iterator[tuple[int, Shard]]:
        room = None if limit is None else max(0, limit - sum(file.table.num_rows for file in files))
        return islice(_new_shards(files, sources, shard_size, on_changed), room)

    return _append(output, new_shards, done)


def _append(
    output: Storage,
    new_shards: Callable[[Sequence[PlanFile]], Iterator[tuple[int, Shard]]],
    done: Collection[str],
) -> list[PlanFile]:
    """Freeze new shards after the existing plan files. Return all plan files, with the new one if there is any."""
    for _ in range(PLAN_RACES):
        files = _plan_files(output)
        _refuse_strangers(output, files, done)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, "plan.parquet")
            count = write_plan_file(new_shards(files), local)
            if count == 0:
                return files
            path = layout.plan_path(len(files))
            if output.create(path, local):
                log.info("plan=%s new_shards=%d", path, count)
                return [*files, PlanFile(output, output.entry(path))]
        # Another run planned at the same time and was first: what it froze stands, and ours is counted again on top.
    raise StorageError(f"{redacted(output.uri)}: {PLAN_RACES} other runs grew the plan first")


def _plan_files(output: Storage) -> list[PlanFile]:
    return [PlanFile(output, entry) for _, entry in layout.list_shards(output, layout.PLAN)]


def _refuse_strangers(output: Storage, files: Sequence[PlanFile], done: Collection[str]) -> None:
    """Refuse a data file of no planned shard. It is foreign, or its plan file was lost."""
    planned = {name for file in files for name in file.table.column("name").to_pylist()}
    if strangers := sorted(set(done) - planned):
        raise ConfigError(
            f"{redacted(output.uri)}: {layout.data_path(strangers[0])}"
            + (f" and {len(strangers) - 1} more" if len(strangers) > 1 else "")
            + " belong to no shard that plan/ names: restore plan/, or take another --output"
        )


def _new_shards(
    files: Sequence[PlanFile], sources: Sequence[str], shard_size: int, on_changed: OnChanged
) -> Iterator[tuple[int, Shard]]:
    known = _Known(files, on_changed)
    uris = {name: uri for file in files for name, uri in zip(*_columns(file, "name", "uri"), strict=True)}
    for position, source in enumerate(dict.fromkeys(map(normal_uri, sources))):
        for shard in list_source(source, shard_size=shard_size, planned=known):
            if shard.name not in uris:
                uris[shard.name] = shard.uri
                yield position, shard
            elif uris[shard.name] != shard.uri:  # 48 bits and the stem: never seen, and silent loss otherwise
                raise ConfigError(f"{redacted(shard.uri)} and {redacted(uris[shard.name])} are both named {shard.name}")


class _Known:
    """What the plan has frozen, in the form that list_source needs (sources.Planned)."""

    def __init__(self, files: Sequence[PlanFile], on_changed: OnChanged) -> None:
        self._files = files
        self._on_changed = on_changed
        self._objects: dict[str, tuple[str, int, str, int]] = {}
        self._runs: dict[str, dict[tuple[int, int], None]] = {}
        for index, file in enumerate(files):
            columns = _columns(file, "uri", "kind", "size", "etag", "stop", "source")
            for uri, kind, size, etag, stop, source in zip(*columns, strict=True):
                if kind == "retry":
                    continue  # freezes nothing of a source
                if kind == "files":
                    self._runs.setdefault(uri, {})[index, source] = None
                else:
                    self._objects[uri] = (kind, size, etag, max(stop, self._objects.get(uri, (kind, 0, "", 0))[3]))

    def end_of(self, uri: str, entry: Entry) -> int | None:
        if uri not in self._objects:
            return None
        kind, size, etag, stop = self._objects[uri]
        # The size of a table's shard is its range's.
        is_same = self._compare(
            uri, (size if kind in ("webdataset", "tar") else entry.size, etag), (entry.size, entry.etag)
        )
        return stop if is_same else NO_MORE

    def videos_under(self, root: str) -> Iterator[ListedVideo]:
        runs = [self._videos(self._files[index], root, source) for index, source in self._runs.get(root, ())]
        return runs[0] if len(runs) == 1 else heapq.merge(*runs, key=lambda video: video.path)

    def check_video(self, root: str, planned: ListedVideo, found: ListedVideo) -> None:
        if planned == found:
            return
        uri = f"{root}/{planned.path}"
        self._compare(uri, (planned.size, planned.etag), (found.size, found.etag))
        for suffix, sidecar in planned.sidecars.items():
            # A sidecar that came later does not count: the shard was frozen without it.
            self._compare(f"{uri}, its {suffix}", sidecar, found.sidecars.get(suffix, (-1, "gone")))

    @staticmethod
    def _videos(file: PlanFile, root: str, source: int) -> Iterator[ListedVideo]:
        for group in file.groups(root, source):
            yield from group.videos

    def _compare(self, what: str, planned: tuple[int, str], found: tuple[int, str]) -> bool:
        if planned == found:
            return True
        message = f"{redacted(what)} changed: planned with size and etag {planned}, found with {found}"
        if self._on_changed == "refuse":
            raise ChangedError(
                f"{message}. Restore it, take a new output, or keep the plan as it is: --on-changed keep"
            )
        log.warning("%s; the plan is kept", message)
        return False


def _columns(file: PlanFile, *names: str) -> Iterable[list[Any]]:
    return [file.table.column(name).to_pylist() for name in names]


def _list_done(output: Storage) -> dict[str, int]:
    """Return the size of every data file, by shard."""
    return {shard: entry.size for shard, entry in layout.list_shards(output, layout.DATA)}
