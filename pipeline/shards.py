"""Define the nouns of the plan: shards, their members, and what is staged of them. All are frozen.

A shard's members are one of

    None         a tar; its members are found when it is read
    FileGroup    videos of a folder
    TableRange   a range of a table
    Retry        rejected clips of a committed shard, to try again
    PlanPlace    where in a plan file the members are; the driver holds only this

Members are JSON text in a plan file and in the row of a shard, and nowhere else. The names of shards and the bytes of
plan files depend on that text: it must not change.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pipeline.records import ChunkId, ClipKey, canonical_json

ShardKind = Literal["webdataset", "tar", "files", "table", "retry"]
"""What a shard is read from. tar: a tar that was planned when hidden members (see samples.is_hidden) were read, too."""


class ListedVideo(NamedTuple):
    """A listed video of a folder. A tuple, since a plan may hold ten million."""

    path: str
    """Relative to the folder."""
    size: int
    etag: str
    sidecars: dict[str, tuple[int, str]]
    """Size and ETag of each sidecar by its suffix."""

    def to_json(self) -> dict[str, Any]:
        """Return the video as it is written to a plan file."""
        return self._asdict()

    @staticmethod
    def from_json(video: dict[str, Any]) -> ListedVideo:
        """Inverse of to_json."""
        sidecars = {suffix: (size, etag) for suffix, (size, etag) in video["sidecars"].items()}
        return ListedVideo(video["path"], video["size"], video["etag"], sidecars)


@dataclass(frozen=True, slots=True)
class FileGroup:
    """The videos of a shard of kind "files", sorted by path."""

    videos: tuple[ListedVideo, ...]

    def to_text(self) -> str:
        """Return the group as it is written to a plan file."""
        return _compact([video.to_json() for video in self.videos])


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRange:
    """A range of a table: rows of a Parquet file, bytes of a JSONL or CSV file."""

    start: int
    stop: int
    rows: int
    """The number of rows in it."""
    table_size: int | None = None
    """Bytes of the whole Parquet file."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of a CSV file."""

    def to_text(self) -> str:
        """Return the range as it is written to a plan file."""
        fields: dict[str, Any] = {"start": self.start, "stop": self.stop, "rows": self.rows}
        if self.table_size is not None:
            fields["table_size"] = self.table_size
        if self.columns is not None:
            fields["columns"] = self.columns
        return _compact(fields)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> TableRange:
        """Inverse of to_text, after the JSON is parsed."""
        columns = fields.get("columns")
        return TableRange(
            start=fields["start"],
            stop=fields["stop"],
            rows=fields["rows"],
            table_size=fields.get("table_size"),
            columns=None if columns is None else tuple(columns),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPlace:
    """Where in a plan file the members of a shard are."""

    plan: str
    """Address of the plan file. Inside a Retry in a plan file only its name, since an output may be moved."""
    row_group: int
    row: int
    """Number of the row in its group."""

    def to_text(self) -> str:
        """Return the place as JSON."""
        return canonical_json({"plan": self.plan, "row_group": self.row_group, "row": self.row})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Rejected clips of a committed shard, to try again (see retries.py)."""

    of: Shard
    """The shard before."""
    videos: tuple[tuple[int, tuple[int, ...] | None], ...]
    """Ordinal of each video in the shard before, in source order, and which of its clips; None: all of them."""
    rest: int | None
    """If the rest of a tar was rejected: every video from this ordinal on, too."""

    def chosen_text(self) -> str:
        """Return what is tried again as JSON. The name of the retry follows from it."""
        return canonical_json({"videos": self.videos, "rest": self.rest})

    def to_text(self) -> str:
        """Return the retry as it is written to a plan file."""
        return canonical_json({"of": self.of.to_row(), "videos": self.videos, "rest": self.rest})

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Retry:
        """Inverse of to_text, after the JSON is parsed."""
        videos = tuple((video, None if clips is None else tuple(clips)) for video, clips in fields["videos"])
        return Retry(of=Shard.from_row(fields["of"]), videos=videos, rest=fields["rest"])


Members = FileGroup | TableRange | Retry | PlanPlace


def parse_members(kind: ShardKind, text: str) -> Members | None:
    """Return the members of a shard of this kind from their text in a plan file or in the row of a shard."""
    if not text:
        return None
    found = json.loads(text)
    if isinstance(found, list):
        return FileGroup(tuple(map(ListedVideo.from_json, found)))
    if "plan" in found:
        return PlanPlace(**found)
    return Retry.from_json(found) if kind == "retry" else TableRange.from_json(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What a broken run has staged of a shard."""

    parts: tuple[ChunkId, ...] = ()
    """Chunks whose latent is staged."""
    verdicts: tuple[ClipKey, ...] = ()
    """Clips that the guard rejected."""
    faults: tuple[tuple[int, int], ...] = ()
    """(video, runs): the number of runs that could not fetch the video (see unreachable.py)."""

    def __bool__(self) -> bool:
        return bool(self.parts or self.verdicts or self.faults)

    def to_text(self) -> str:
        """Return what is staged as JSON; "" if nothing is."""
        if not self:
            return ""
        parts = [(part.video, part.clip, part.chunk, part.num_chunks) for part in self.parts]
        return _compact({"parts": parts, "verdicts": self.verdicts, "faults": self.faults})

    @staticmethod
    def from_text(shard: str, text: str) -> Staged:
        """Inverse of to_text."""
        if not text:
            return Staged()
        found = json.loads(text)
        return Staged(
            parts=tuple(
                ChunkId(shard=shard, video=video, clip=clip, chunk=chunk, num_chunks=num_chunks)
                for video, clip, chunk, num_chunks in found["parts"]
            ),
            verdicts=tuple((video, clip) for video, clip in found["verdicts"]),
            faults=tuple((video, runs) for video, runs in found["faults"]),
        )


NOTHING_STAGED = Staged()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The unit of listing, of resume and of output, as frozen in the plan."""

    name: str
    """Up to 40 safe characters of the stem, "-", 12 hex digits of sha256 (see shard_name). Names the output file."""
    kind: ShardKind
    uri: str
    """The tar, the folder, or the table; of a retry, that of the shard whose clips it tries again."""
    size: int
    """Bytes of encoded input as listed. Of a table the bytes of the table, since its videos are not listed."""
    etag: str
    """ETag, or size and mtime on local disks; "" for a group of files, whose members carry their own."""
    members: Members | None = None
    """One of the kinds above."""
    staged: Staged = NOTHING_STAGED
    """What a broken run has staged; set when the shard is planned again."""

    @property
    def members_text(self) -> str:
        """The members as they are written to a plan file."""
        return self.members.to_text() if self.members else ""

    def to_row(self) -> dict[str, Any]:
        """Return the shard as a dict of text and numbers, for an Arrow row."""
        row = {name: getattr(self, name) for name in self.__slots__}
        return row | {"members": self.members_text, "staged": self.staged.to_text()}

    @staticmethod
    def from_row(row: dict[str, Any]) -> Shard:
        """Inverse of to_row."""
        members = parse_members(row["kind"], row["members"])
        return Shard(**row | {"members": members, "staged": Staged.from_text(row["name"], row["staged"])})


def shard_name(uri: str, stem: str, members: str) -> str:
    """Return up to 40 safe characters of the stem, "-", and 12 hex digits of the sha256 of uri and members."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:40] or "shard"
    text = f"{uri}\n{members}".encode("utf-8", "surrogateescape")
    return f"{safe}-{hashlib.sha256(text).hexdigest()[:12]}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
