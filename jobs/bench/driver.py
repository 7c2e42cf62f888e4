"""python -m jobs.bench driver: measure the driver with made receipts: receipts a second, memory, commits and the seal.

The driver, its ledger and its progress are real, and so are commit and seal. Receipts come from a generator, whose own
time is left out; no Ray runs, and no video is read. Each case runs in a process of its own, which gives its memory.

    open     all clips of the source are open at once: receipts go to a random open shard, the last ones complete them
    passing  the same for a source of many shards, of which few are open at a time
    rows     receipts come out of the Arrow tables that the stages hand on
    commit   real commits against a store that takes a time for each request, for several numbers at a time
    seal     join the indexes of committed shards through that store
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from jobs.bench.made_receipts import CLIPS_PER_SHARD, made, receipts_of
from jobs.bench.plan import index_of_one_shard, planned, renamed, stage_shard
from jobs.bench.slow_store import SlowStorage
from pipeline.control.clip_work import ClipWork
from pipeline.output import layout
from pipeline.output.commit import Committed, commit, seal
from pipeline.output.rows import from_table, to_table
from pipeline.receipts import Receipt
from pipeline.records import CompleteShard
from pipeline.runs.claims import Claims, NoClaims, Owner
from pipeline.runs.commits import ENCODERS_PER_COMMIT
from pipeline.runs.passes import Passes
from pipeline.runs.stop import Stop
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.storage.parallel import READERS

TARGET_RATE = 20_000.0
"""Receipts a second. 1,000 GPUs at 3 clips/s make about 3,000 parts a second."""

BATCH = 10_000
"""Receipts that are made at a time, so that the time of making them can be left out."""

Case = Literal["open", "passing", "rows", "commit", "seal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Options of the benchmark."""

    cases: tuple[Case, ...] = ("open", "passing", "rows", "commit", "seal")
    """What to measure."""
    open_clips: int = 1_000_000
    """Clips that are open at once in case `open`."""
    shards: int = 20_000
    """Shards of 100 clips in case `passing`; 100,000 of them take five times as long."""
    open_shards: int = 1_000
    """Shards that are open at a time in case `passing`."""
    commits: int = 32
    """Commits of 64 clips in each round of case `commit`."""
    in_flight: tuple[int, ...] = (2, 8, 32)
    """Commits at a time in the rounds of case `commit`."""
    seal_shards: int = 2_000
    """Shards in case `seal`."""
    request_ms: float = 50.0
    """Time of one request to the store, in cases `commit` and `seal`."""


@dataclass(slots=True)
class Measured:
    """A run of the driver over made receipts."""

    num_receipts: int = 0
    cpu_seconds: float = 0.0
    """Of the whole process while it takes receipts: this code never waits, and other work does not change them."""
    before_bytes: int = 0
    """Memory of the process before the first receipt."""
    marks: list[tuple[int, int]] = field(default_factory=list)
    """(receipts so far, memory in bytes), now and then."""
    left: tuple[int, int] = (0, 0)
    """Shards that ledger and progress still hold at the end."""

    @property
    def rate(self) -> float:
        """Receipts a second of CPU."""
        return self.num_receipts / max(self.cpu_seconds, 1e-9)

    @property
    def peak_bytes(self) -> int:
        """Memory of the run itself, at the largest mark."""
        return max(memory for _, memory in self.marks) - self.before_bytes


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each case. Return 1 if the receipts a second miss the target."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench driver", description=__doc__)
    rates = []
    for case in args.cases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rate = pool.apply(CASES[case], (args,))
        if rate is not None:
            rates.append(rate)
    if not rates:
        return 0
    is_met = min(rates) >= TARGET_RATE
    print(f"target: {TARGET_RATE:,.0f} receipts/s in open and passing, {'met' if is_met else 'missed'}")
    return int(not is_met)


def measure(num_shards: int, open_shards: int) -> Measured:
    """Drive the receipts of `num_shards` shards, of which `open_shards` are open at a time."""
    got = Measured()
    with tempfile.TemporaryDirectory() as folder:
        output = Storage(folder)
        work = ClipWork(output, planned(output, "tars", num_shards, []), stage_shard(output, "", 0))
        work.stream, work.commit = partial(_timed, got, open_shards), _nothing_to_do
        work.release = lambda _: None
        got.before_bytes = resident_bytes()
        Passes(work, output, lambda _: None, 1.0).drive(NoClaims(), Stop(1))
        got.left = len(work._ledger.still_open()), work.progress.shards()["open"]
    return got


def _timed(got: Measured, open_shards: int, shards: list[Shard]) -> Iterator[Receipt]:
    """Yield made receipts, and note how long the driver needs for them."""
    for batch in made([shard.name for shard in shards], open_shards, BATCH):
        cpu = time.process_time()
        yield from batch
        got.cpu_seconds += time.process_time() - cpu
        got.num_receipts += len(batch)
        got.marks.append((got.num_receipts, resident_bytes()))


def _nothing_to_do(_output: Storage, _spec: str, shard: CompleteShard) -> Committed:
    return Committed(shard=shard.name)


def _open(args: Args) -> float:
    num_shards = max(1, args.open_clips // CLIPS_PER_SHARD)
    got = measure(num_shards, num_shards)
    clips = num_shards * CLIPS_PER_SHARD
    print(
        f"open: {clips:,} clips in {num_shards:,} shards at once: {got.rate:,.0f} receipts/s, "
        f"{got.peak_bytes / 1e6:,.0f} MB, {got.peak_bytes / clips:.0f} bytes a clip; "
        f"shards left in ledger and progress: {got.left[0]}, {got.left[1]}",
        flush=True,
    )
    return got.rate


def _passing(args: Args) -> float:
    got = measure(args.shards, args.open_shards)
    parts = [got.marks[len(got.marks) * quarter // 4 - 1][1] - got.before_bytes for quarter in (1, 2, 3, 4)]
    memory = ", ".join(f"{part / 1e6:,.0f}" for part in parts)
    print(
        f"passing: {args.shards * CLIPS_PER_SHARD:,} clips in {args.shards:,} shards, {args.open_shards:,} open: "
        f"{got.rate:,.0f} receipts/s, {memory} MB after each quarter, {got.before_bytes / 1e6:,.0f} MB before; "
        f"shards left in ledger and progress: {got.left[0]}, {got.left[1]}",
        flush=True,
    )
    return got.rate


def _rows(_: Args) -> None:
    """Print the time of unpacking a receipt. It is the driver's too, but not compared with the target."""
    receipts = list(receipts_of("shard"))
    tables = [to_table(receipt) for receipt in receipts]
    started = time.process_time()
    for table in tables:
        assert list(from_table(table))
    each = (time.process_time() - started) / len(tables)
    print(f"rows: {each * 1e6:.0f} us to unpack a table of one receipt, {1 / each:,.0f} receipts/s", flush=True)


def _commit(args: Args) -> None:
    for at_a_time in args.in_flight:
        with tempfile.TemporaryDirectory() as folder:
            print(commit_round(folder, args.commits, at_a_time, args.request_ms / 1e3), flush=True)


def commit_round(folder: str, num_shards: int, at_a_time: int, request_seconds: float) -> str:
    """Let the driver commit `num_shards` staged shards, and return the line for it."""
    output = Storage(folder)
    plan = planned(output, "tars", num_shards, [])
    for shard in plan:
        spec = stage_shard(output, shard.name, 64)
    slow = SlowStorage(folder, request_seconds)
    assert slow.create_only
    slow.requests.clear()
    work = ClipWork(output, plan, spec)
    work.progress.slots = {"encode": at_a_time * ENCODERS_PER_COMMIT}
    passes = Passes(work, output, lambda _: None, 600.0)
    claims = Claims(slow, Owner.this_process(passes.run_id))
    work.stream, work.release = partial(_staged, claims), claims.release
    work.commit = lambda _, spec, shard: commit(slow, spec, shard)
    started, cpu = time.perf_counter(), time.process_time()
    passes.drive(claims, Stop(1))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert len(work.done) == num_shards
    return (
        f"commit: {at_a_time} at a time: {num_shards / wall:.2f} shards/s, "
        f"{at_a_time * wall / num_shards:.2f} s a commit, "
        f"{cpu / num_shards * 1e3:.0f} ms of CPU, {slow.requests.total() / num_shards:.0f} requests a shard"
    )


def _staged(claims: Claims, shards: list[Shard]) -> Iterator[Receipt]:
    for shard in shards:
        claims._answers[shard.name] = True  # as `take` leaves it, whose time is not that of a commit
        yield from receipts_of(shard.name, num_videos=64, clips_per_video=1, rejected=0)


def _seal(args: Args) -> None:
    names = [f"{number:012x}" for number in range(args.seal_shards)]
    with tempfile.TemporaryDirectory() as folder:
        index = index_of_one_shard(folder)
        for name in names:
            path = Path(folder, layout.index_path(name))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(renamed(index, name) if name == names[0] else index)
        slow = SlowStorage(folder, args.request_ms / 1e3)
        started, cpu = time.perf_counter(), time.process_time()
        rows = seal(slow, names)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(
        f"seal: {rows:,} rows of {len(names):,} shards: {wall:.1f} s, of which CPU {cpu:.1f} s; "
        f"{slow.requests.total():,} requests, {READERS} at a time",
        flush=True,
    )


def resident_bytes() -> int:
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


CASES: dict[Case, Callable[[Args], float | None]] = {
    "open": _open,
    "passing": _passing,
    "rows": _rows,
    "commit": _commit,
    "seal": _seal,
}
"""What each case runs; the receipts a second of those that are compared with the target."""
