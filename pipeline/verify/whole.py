"""Read an output back and check that all of it is consistent. Read-only, also during a run.

    the whole     every planned shard is done or listed as remaining; no unknown files in data/, index/, rejected/
    each shard    see verify/shard.py: footer, rows, latents, index, rejections
    the seal      index.parquet equals the index files that it was made from; it may be older
    each text     see verify/text.py: its spec, and each of its files against the rows of the shard

It also proves, without a table of all ids, that no id is used twice: the id of each row must equal the sha256 over its
shard, video and clip, and each of these triples must occur once.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ChangedError, ConfigError, NotFoundError, StorageError
from pipeline.output import layout
from pipeline.output.layout import SEAL_PATH, data_path, shard_of
from pipeline.output.spec_file import load_spec
from pipeline.plan.frozen import read_plan
from pipeline.storage import Storage
from pipeline.storage.parallel import in_parallel
from pipeline.storage.range_file import open_parquet
from pipeline.verify.findings import Checked
from pipeline.verify.shard import Planned, check_shard
from pipeline.verify.text import check_texts


def verify(output: Storage) -> Iterator[Checked]:
    """Check an output: first as a whole, then shard by shard in the order of their names, then index.parquet and texts.

    Memory: the names of the shards, and one clip for each of parallel.READERS threads.

    Raises:
        ConfigError: there is no valid spec.json.
        StorageError: storage failed, so nothing is known about the output.
    """
    spec = load_spec(output)
    derived = [entry.path for folder in (layout.INDEX, layout.REJECTED) for entry in output.list(folder)]
    in_data = [entry.path for entry in output.list(layout.DATA)]  # listed after the derived files and before the plan
    done = {path[len(layout.DATA) : -len(layout.PARQUET)] for path in in_data if path.endswith(layout.PARQUET)}
    arrays: defaultdict[str, list[str]] = defaultdict(list)
    for path in in_data:
        if path.endswith(layout.NPY):
            arrays[shard_of(path)].append(path)
    whole, plan = _whole(output, done, [*in_data, *derived])
    yield whole
    rows: dict[str, int] = {}

    def check(shard: str) -> Checked:
        return check_shard(output, spec, shard, arrays.get(shard, []), plan.get(shard, Planned()))

    for checked in in_parallel(check, sorted(done)):
        rows[checked.shard] = checked.rows
        yield checked
    yield _seal(output, rows)
    yield from check_texts(output, done)


def _whole(output: Storage, done: set[str], paths: list[str]) -> tuple[Checked, dict[str, Planned]]:
    """Compare the plan with the files. Return the result, and the plan's facts of each done shard."""
    checked = Checked()
    known: dict[str, Planned] = {}
    planned: Counter[str] = Counter()
    try:
        plan = read_plan(output)
        num_videos = plan.num_videos()
        for shard in plan:
            planned[shard.name] += 1
            known[shard.name] = Planned(num_videos.get(shard.name), shard.kind == "retry")
    except ConfigError as error:
        checked.wrong(layout.PLAN, "plan", str(error), "plan files that can be read")
        planned = Counter(done)
    for name in sorted(done - planned.keys()):
        checked.wrong(data_path(name), "shard", name, "a shard of the plan")
    for name, times in planned.items():
        if times > 1:
            checked.wrong(layout.PLAN, f"shard {name}", f"planned {times} times", "once")
        if name not in done:
            checked.notes.append(f"{name} remains: planned, and not done yet")
    checked.remaining = len(planned.keys() - done)
    for path in paths:
        is_data = path.startswith(layout.DATA)
        if not path.endswith((layout.PARQUET, layout.NPY if is_data else layout.JSONL)):
            checked.notes.append(f"{path} is not a file of latentmill")
        elif not is_data and shard_of(path) not in done:
            checked.wrong(data_path(shard_of(path)), "file", "none", f"the data file that {path} was made of")
    return checked, known


def _seal(output: Storage, rows: dict[str, int]) -> Checked:
    """Compare index.parquet with the index files. `rows` are the numbers of rows of the shards with a data file."""
    checked = Checked()
    sealed: Counter[str] = Counter()
    try:
        entry = output.entry(SEAL_PATH)
        file = open_parquet(output.address(SEAL_PATH), entry.size, entry.etag)
        for shard, is_equal in in_parallel(lambda run: (run[0], _is_index(output, *run)), _runs(file)):
            sealed[shard] += 1
            if shard not in rows:
                checked.wrong(SEAL_PATH, f"shard {shard}", "rows", "no rows: it has no data file")
            elif not is_equal:
                checked.wrong(SEAL_PATH, f"shard {shard}", "other rows", f"those of {layout.index_path(shard)}")
            elif sealed[shard] > 1:
                checked.wrong(SEAL_PATH, f"shard {shard}", f"{sealed[shard]} times", "once")
    except NotFoundError:
        if rows:
            checked.notes.append(f"{SEAL_PATH} is not there yet; the end of a run makes it")
        return checked
    except ChangedError:
        checked.notes.append(f"{SEAL_PATH} was rewritten while it was read, so it was not checked")
        return checked
    except StorageError:
        raise
    except (ConfigError, pa.ArrowException, OSError, KeyError) as error:
        checked.wrong(SEAL_PATH, "file", str(error), "an index")
        return checked
    if lagging := sum(shard not in sealed for shard, num_rows in rows.items() if num_rows):
        checked.notes.append(f"{SEAL_PATH} lacks {lagging} of {len(rows)} shards; the end of a run adds them")
    return checked


def _runs(file: pq.ParquetFile) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of index.parquet shard by shard, independent of its row groups."""
    shard, pieces = "", list[pa.Table]()
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        start = 0
        for name, rows in groupby(table.column("file").to_pylist(), key=shard_of):
            if pieces and name != shard:
                yield shard, pa.concat_tables(pieces)
                pieces = []
            count = len(list(rows))
            shard, start = name, start + count
            pieces.append(table.slice(start - count, count))
    if pieces:
        yield shard, pa.concat_tables(pieces)


def _is_index(output: Storage, shard: str, found: pa.Table) -> bool:
    """Return whether these rows equal the shard's index. A missing or damaged index is reported with its shard."""
    try:
        return bool(found.equals(pq.read_table(io.BytesIO(output.read(layout.index_path(shard))))))
    except (NotFoundError, pa.ArrowException, ValueError):
        return True
