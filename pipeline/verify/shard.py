"""Read one committed shard back: footer, rows, latents, NPY arrays, index and rejections against each other.

    footer      names this shard; its Spec equals spec.json; planned = rows + rejections; all videos of the plan
    rows        ids match shard, video and clip; source order; each video's clips are 0, 1, 2, ...
    latents     crc32, shape against bytes and against the Spec, dtype, finite values, statistics
    arrays      their names match their content, and their lengths the rows that name them
    index       the bytes at file, byte_offset, byte_length are the latent; every other column equals the row
    rejected/   equals the footer's rejections, line by line

A latent is read twice, as a Parquet reader reads it and by the index's byte range, because both are guaranteed. One
clip is in memory at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from math import prod

import pyarrow as pa
import pyarrow.parquet as pq

from latentmill.format import DTYPES, FOOTER_SHARD, FOOTER_SPEC, STATISTICS, is_finite, schema_of
from latentmill.store.stream import READ_BYTES
from pipeline.errors import ConfigError, NotFoundError, StorageError
from pipeline.output.layout import data_path, index_path, rejected_path
from pipeline.output.read_latent import Row, npy_header, payload_of
from pipeline.output.statistics import same_statistics, statistics
from pipeline.records import REASONS, ClipKey, clip_id
from pipeline.settings.spec import Spec, diff
from pipeline.storage import Storage
from pipeline.storage.range_file import open_parquet
from pipeline.verify.findings import Checked
from vae.info import VAEInfo


@dataclass(frozen=True, slots=True)
class Planned:
    """The facts of a shard in the plan."""

    num_videos: int | None = None
    """None if the plan does not know it: the videos of a tar are counted when it is read."""
    is_retry: bool = False
    """Whether it is a retry: its clips are some clips of a video, numbered as in the original shard."""


def check_shard(output: Storage, spec: Spec, shard: str, arrays: list[str], planned: Planned) -> Checked:
    """Check a committed shard. `arrays` are the paths of its NPY files.

    Raises StorageError only.
    """
    check = _ShardCheck(output, spec, shard)
    if check.open():
        check.rows()
        check.conservation(planned)
        check.rejected()
        check.arrays(arrays)
    return check.checked


class _ShardCheck:
    def __init__(self, output: Storage, spec: Spec, shard: str) -> None:
        self.checked = Checked(shard=shard)
        self._output, self._spec, self._shard = output, spec, shard
        self._path = data_path(shard)
        self._clips: Counter[ClipKey] = Counter()
        self._in_array: defaultdict[str, set[int]] = defaultdict(set)

    def open(self) -> bool:
        """Open the file, and check footer and index. Return False if there are no rows to check."""
        try:
            entry = self._output.entry(self._path)
            self._file = open_parquet(self._output.address(self._path), entry.size, entry.etag)
            metadata = self._file.metadata.metadata or {}
            text = metadata[FOOTER_SPEC.encode()].decode()
            self._footer = json.loads(metadata[FOOTER_SHARD.encode()])
            differences = diff(text, self._spec.to_json())
            self._info, self._rule = VAEInfo(**Spec.from_json(text).vae), Spec.from_json(text)
        except StorageError:
            raise
        except (ConfigError, KeyError, ValueError, TypeError) as error:
            self._wrong("file", repr(error), "a data file with its footer")
            return False
        for field, found, expected in differences:
            self._wrong(f"footer's Spec, {field}", found, f"{expected} as in spec.json")
        if self._footer["shard"] != self._shard:
            self._wrong("footer's shard", self._footer["shard"], self._shard)
        if not self._file.schema_arrow.equals(schema := schema_of(self._rule.format_version)):
            self._wrong("schema", self._file.schema_arrow.names, schema.names)
            return False
        self._index = self._read_index()
        return True

    def rows(self) -> None:
        """Check every row, its latent and its row in the index."""
        last: ClipKey = (-1, -1)
        for i in range(self._file.num_row_groups):
            try:
                rows = self._file.read_row_group(i).to_pylist()
            except StorageError:
                raise
            except (pa.ArrowException, OSError, ValueError) as error:
                self._wrong("row", f"unreadable: {error}", "a row", i)
                continue
            if len(rows) != 1:
                self._wrong("row group", f"{len(rows)} rows", "one", i)
                continue
            (row,) = rows
            clip = (row["video_index"], row["clip_index"])
            if clip <= last:
                self._wrong("source order", f"video {clip[0]} clip {clip[1]}", f"one after {last[0]}, {last[1]}", i)
            last = clip
            self._clips[clip] += 1
            self.checked.rows += 1
            self._facts(i, row)
            self._latent(i, row)

    def conservation(self, plan: Planned) -> None:
        """Check that planned = rows + rejections, no clip is missing or twice, and all planned videos are there."""
        rejections = self._footer["rejections"]
        ends = self._clips + Counter((rejection["video"], rejection["clip"]) for rejection in rejections)
        self.checked.rejections = len(rejections)
        if (planned := self._footer["planned"]) != self._file.num_row_groups + len(rejections):
            found = f"{self._file.num_row_groups} rows + {len(rejections)} rejections"
            self._wrong("conservation", found, f"{planned} planned clips")
        clips_of: defaultdict[int, set[int]] = defaultdict(set)
        for (video, clip), times in sorted(ends.items()):
            clips_of[video].add(clip)
            if times > 1:
                self._wrong("conservation", f"video {video} clip {clip} {times} times", "once")
        num_videos = max(clips_of, default=-1) + 1
        if plan.num_videos is not None and num_videos > plan.num_videos:
            self._wrong("conservation", f"{num_videos} videos", f"{plan.num_videos} as in the plan")
        for video in range(max(num_videos, plan.num_videos or 0)):
            clips = clips_of[video] or {0}
            expected = {min(clips)} if plan.is_retry else range(max(clips) + 1)
            if missing := set(expected) - clips_of[video]:
                self._wrong("conservation", "neither row nor rejection", f"video {video} clip {min(missing)}")
        for rejection in rejections:
            if rejection["reason"] not in REASONS:
                self._wrong("rejection", rejection["reason"], "a reason of the closed set")

    def rejected(self) -> None:
        """Check rejected/<shard>.jsonl. It is written before the index, so without an index it may be missing."""
        path = rejected_path(self._shard)
        expected = [json.dumps(rejection) for rejection in self._footer["rejections"]]
        try:
            found = self._output.read(path).decode(errors="replace").splitlines()
        except NotFoundError:
            if expected and self._index is None:
                self.checked.notes.append(f"{path} is not there; the next run makes it")
                return
            found = []
        for i in range(max(len(found), len(expected))):
            ours, theirs = (lines[i] if i < len(lines) else "nothing" for lines in (found, expected))
            if ours != theirs:
                self.checked.wrong(path, "rejection", ours, theirs, i)

    def arrays(self, paths: list[str]) -> None:
        """Check that each NPY array matches its name, and has exactly the latents of the rows that name it."""
        for path in sorted(self._in_array.keys() - set(paths)):
            self.checked.wrong(path, "file", "none", f"the array that rows of {self._path} name")
        for path in paths:
            if path not in self._in_array:
                self.checked.notes.append(f"{path} is named by no row")
                continue
            digest = hashlib.sha256()
            with self._output.stream(path) as body:
                while piece := body.read(READ_BYTES):
                    digest.update(piece)
            if (found := digest.hexdigest()[:12]) != (named := path.split(".")[-2]):
                self.checked.wrong(path, "sha256", found, f"{named} as in its name")
            try:
                length = npy_header(self._output, path)[0][0]
            except (ValueError, IndexError):
                continue  # already reported for each row
            if self._in_array[path] != set(range(length)):
                self.checked.wrong(path, "latents", length, f"those of {len(self._in_array[path])} rows")

    def _read_index(self) -> list[Row] | None:
        path = index_path(self._shard)
        try:
            rows: list[Row] = pq.read_table(io.BytesIO(self._output.read(path))).to_pylist()
        except NotFoundError:
            self.checked.notes.append(f"{path} is not there; the next run makes it")
            return None
        except StorageError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            self.checked.wrong(path, "file", error, "an index")
            return None
        if len(rows) != self._file.num_row_groups:
            self.checked.wrong(path, "rows", len(rows), f"{self._file.num_row_groups} as in {self._path}")
        return rows

    def _facts(self, i: int, row: Row) -> None:
        """Check everything in a row except its latent."""
        expected_id = clip_id(self._shard, row["video_index"], row["clip_index"])
        if row["id"] != expected_id:
            self._wrong("id", row["id"], expected_id, i)
        shape = (row["num_frames"], row["height"], row["width"])
        if not self._may_be(*shape):
            allowed = ", ".join("x".join(map(str, shape)) for shape in self._rule.clip.shapes)
            self._wrong("num_frames, height, width", "x".join(map(str, shape)), f"{allowed} as in the Spec", i)
        if len(row["timestamps_sec"]) != row["num_frames"]:
            self._wrong("timestamps_sec", f"{len(row['timestamps_sec'])} times", f"{row['num_frames']}", i)
        try:
            channels, *rest = self._info.latent_shape(*shape)
        except ValueError as error:
            self._wrong("num_frames, height, width", error, "what the VAE takes", i)
            return
        wanted = [channels * (2 if self._rule.latent.posterior == "moments" else 1), *rest]
        if row["latent_shape"] != wanted:
            self._wrong("latent_shape", row["latent_shape"], f"{wanted} of {'x'.join(map(str, shape))}", i)

    def _may_be(self, num_frames: int, height: int, width: int) -> bool:
        """Return whether a clip of the Spec can have this shape: trimmed clips are shorter, images have one frame."""
        rule = self._rule.clip
        return any(
            (height, width) == (h, w)
            and (
                num_frames == t
                or (num_frames == 1 and rule.images == "one_frame")
                or (rule.short == "trim" and num_frames < t and self._info.accepts(num_frames))
            )
            for t, h, w in rule.shapes
        )

    def _latent(self, i: int, row: Row) -> None:
        """Check the bytes of a row's latent, in the data file and at the place in the index."""
        dtype = row["latent_dtype"]
        if dtype != self._rule.latent.store_dtype:
            self._wrong("latent_dtype", dtype, self._rule.latent.store_dtype, i)
        if (row["npy_file"] is None) != (self._rule.latent.format == "parquet"):
            self._wrong("npy_file", row["npy_file"], f"format {self._rule.latent.format}", i)
        if row["npy_file"] is not None:
            self._in_array[row["npy_file"]].add(row["npy_row"])
        try:
            payload = payload_of(self._output, row)
        except (NotFoundError, ValueError) as error:
            self._wrong("npy_file", error, f"an array at {row['npy_file']}", i)
            return
        length = prod(row["latent_shape"]) * DTYPES[dtype].itemsize if dtype in DTYPES else -1
        if len(payload) != length:
            self._wrong("latent", f"{len(payload)} bytes", f"{length} of {dtype} {row['latent_shape']}", i)
        elif not is_finite(payload, dtype):
            self._wrong("latent", "NaN or infinity", "finite values", i)
        else:
            self._statistics(i, row, payload)
        if (crc := zlib.crc32(payload)) != row["latent_crc32"]:
            self._wrong("latent", f"bytes of crc32 {crc:08x}", f"{row['latent_crc32']:08x}", i)
        self.checked.latent_bytes += len(payload)
        if self._index is not None and i < len(self._index):
            self._indexed(i, row, payload)

    def _statistics(self, i: int, row: Row, payload: bytes) -> None:
        """Check the statistics of a row against its latent. Outputs of format version 1 have none."""
        expected = statistics(payload, row["latent_dtype"], tuple(row["latent_shape"]))
        names = [name for name in STATISTICS.names if name in row]
        if name := next((name for name in names if not same_statistics(row[name], expected[name])), None):
            self._wrong(name, row[name], f"{expected[name]} of the latent", i)

    def _indexed(self, i: int, row: Row, payload: bytes) -> None:
        """Check the row of the index for a row."""
        assert self._index is not None
        path, line = index_path(self._shard), self._index[i]
        expected = {name: value for name, value in row.items() if name != "latent"}
        expected |= {"file": row["npy_file"] or self._path, "byte_length": len(payload)}
        for name, value in expected.items():
            if line.get(name, "nothing") != value:
                self.checked.wrong(path, name, line.get(name, "nothing"), value, i)
        offset = line.get("byte_offset")
        if not isinstance(offset, int):
            self.checked.wrong(path, "byte_offset", offset, "an offset", i)
        elif offset < 0 or self._output.read(expected["file"], offset, offset + len(payload)) != payload:
            self.checked.wrong(path, "byte_offset", f"{offset}, where other bytes are", f"the latent of row {i}", i)

    def _wrong(self, what: str, found: object, expected: object, row: int | None = None) -> None:
        self.checked.wrong(self._path, what, found, expected, row)
