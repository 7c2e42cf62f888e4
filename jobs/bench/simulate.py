"""python -m jobs.bench simulate: simulate a run on more encoders than there are, and show where it stops scaling.

No video, no GPU and no store is used: every time is an option, and the defaults are those of docs/scale.md. Simulated:

    claim a shard -> read it -> decode slots -> encoders -> stage -> receipts to one driver -> commit, release the claim

Claims are one actor, which waits for the store. A decode slot is held until an encoder takes the clip, as backpressure
does. Ray's own work is left out, unless --ray-ms gives its share of the driver's time.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count

import tyro

from pipeline.runs.claims import Claims
from pipeline.runs.commits import commits_in_flight
from pipeline.storage.parallel import READERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Options of the simulation."""

    encoders: tuple[int, ...] = (10, 100, 300, 1000, 3000)
    """Numbers of encoders, one simulation each."""
    decode_slots: int = 10
    """Decode tasks for each encoder."""
    clips_per_shard: int = 64
    """Clips in a shard, each of a video of its own."""
    encode_seconds: float = 1 / 3
    """Time of an encoder for a clip."""
    decode_seconds: float = 2.0
    """Mean time of a decode slot for a clip."""
    read_seconds: float = 3.0
    """Mean time to read a shard."""
    request_ms: float = 50.0
    """Mean time of one request to the store."""
    spread: float = 0.5
    """Standard deviation of the logarithm of decode, read and request times; 0: each takes its mean."""
    receipt_us: float = 27.0
    """Time of the driver for a receipt."""
    receipts_per_clip: float = 2.0
    """Receipts for a clip: its part, and its share of the counts."""
    unpack_us: float = 70.0
    """Time of the driver to unpack a receipt from its table."""
    ray_ms: float = 0.0
    """Time of Ray in the driver for a clip."""
    commits: int | None = None
    """Commits at a time. Default: as many as the driver takes for these encoders."""
    commit_cpu_ms: float = 500.0
    """CPU time of a commit of 64 clips; it grows with the number of clips."""
    commit_requests: int = 7
    """Requests of a commit beside one for each clip, of which READERS are under way at a time."""
    claims: int = Claims.AT_A_TIME
    """Claims that are taken or released at a time."""
    seconds: float = 60.0
    """Simulated time; the second half is measured."""
    seed: int = 0
    """Seed of the random times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The second half of one simulation."""

    encoders: int
    clips_per_second: float
    """Clips whose receipts the driver took."""
    committed_per_second: float
    """Clips of the shards that were committed."""
    busy: dict[str, float]
    """Busy share of encoders, driver, commits and claims."""
    open_shards: int
    """Shards at the end that are claimed and not committed."""

    @property
    def limit(self) -> str:
        """Names of what is busy all the time."""
        return ", ".join(name for name, share in self.busy.items() if share > 0.97) or "-"


class Pool:
    """Servers of one kind. Whoever finds none free waits, in order."""

    def __init__(self, size: int) -> None:
        self.size, self.free = size, size
        self.waiting: deque[Process] = deque()
        self._busy = self._since = 0.0

    def take(self, now: float, number: int) -> None:
        """Count `number` servers as busy from now on; a negative number as free."""
        self._busy += (self.size - self.free) * (now - self._since)
        self.free, self._since = self.free - number, now

    def busy(self, now: float) -> float:
        """Return the busy time so far, summed over the servers."""
        self.take(now, 0)
        return self._busy


Process = Generator["Pool | float", None, None]
"""What happens to a shard or a clip: it yields seconds to pass, or a pool of which it takes one server."""


class Simulation:
    """One run with this number of encoders."""

    def __init__(self, args: Args, encoders: int) -> None:
        self._args, self.now = args, 0.0
        self._rng, self._order = random.Random(args.seed), count()
        self._events: list[tuple[float, int, Process]] = []
        self._decoders = Pool(encoders * args.decode_slots)
        self._encoders, self._driver, self._claims = Pool(encoders), Pool(1), Pool(args.claims)
        self._commits = Pool(commits_in_flight(encoders) if args.commits is None else args.commits)
        self._coming = self._clips = self._committed = self._open = 0

    def run(self) -> Result:
        """Simulate, and return the second half."""
        args, half = self._args, self._args.seconds / 2
        pools = {"encoders": self._encoders, "driver": self._driver, "commits": self._commits, "claims": self._claims}
        self._feed()
        self._until(half)
        clips, committed = self._clips, self._committed
        busy = {name: pool.busy(half) for name, pool in pools.items()}
        self._until(args.seconds)
        return Result(
            encoders=self._encoders.size,
            clips_per_second=(self._clips - clips) / half,
            committed_per_second=(self._committed - committed) / half,
            busy={name: (pool.busy(args.seconds) - busy[name]) / half / pool.size for name, pool in pools.items()},
            open_shards=self._open,
        )

    def _until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, process = heapq.heappop(self._events)
            self._go(process)
        self.now = end

    def _go(self, process: Process) -> None:
        """Let a process go on until it has to wait."""
        for wants in process:
            if isinstance(wants, float):
                heapq.heappush(self._events, (self.now + wants, next(self._order), process))
                return
            if not wants.free:
                wants.waiting.append(process)
                return
            wants.take(self.now, 1)

    def _release(self, pool: Pool) -> None:
        if pool.waiting:  # the server passes on
            heapq.heappush(self._events, (self.now, next(self._order), pool.waiting.popleft()))
        else:
            pool.take(self.now, -1)

    def _use(self, pool: Pool, seconds: float) -> Process:
        yield pool
        yield seconds
        self._release(pool)

    def _feed(self) -> None:
        """Begin shards until as many clips wait, or will, as can be decoded at a time."""
        while self._coming < 2 * self._decoders.size:
            self._coming += self._args.clips_per_shard
            self._go(self._shard())

    def _shard(self) -> Process:
        yield from self._use(self._claims, self._requests(2))
        self._open += 1
        yield self._time(self._args.read_seconds)
        left = [self._args.clips_per_shard]
        for _ in range(self._args.clips_per_shard):
            self._go(self._clip(left))

    def _clip(self, left: list[int]) -> Process:
        yield self._decoders
        self._coming -= 1
        self._feed()
        yield self._time(self._args.decode_seconds)
        yield self._encoders
        self._release(self._decoders)
        yield self._args.encode_seconds
        self._release(self._encoders)
        yield self._requests(1)
        yield from self._use(self._driver, self._driver_seconds())
        self._clips += 1
        left[0] -= 1
        if not left[0]:
            self._go(self._commit())

    def _commit(self) -> Process:
        args = self._args
        yield self._commits
        yield self._requests(args.commit_requests + math.ceil(args.clips_per_shard / READERS))
        yield args.commit_cpu_ms / 1e3 * args.clips_per_shard / 64
        yield from self._use(self._claims, self._requests(1))
        self._release(self._commits)
        self._committed += args.clips_per_shard
        self._open -= 1

    def _driver_seconds(self) -> float:
        """Return the time of the driver for one clip."""
        args = self._args
        return args.receipts_per_clip * (args.receipt_us + args.unpack_us) / 1e6 + args.ray_ms / 1e3

    def _requests(self, number: int) -> float:
        return sum(self._time(self._args.request_ms / 1e3) for _ in range(number))

    def _time(self, mean: float) -> float:
        """Return a random time with this mean, in seconds."""
        spread = self._args.spread
        return mean * math.exp(self._rng.gauss(-spread * spread / 2, spread)) if spread and mean else mean


def simulate(args: Args) -> Iterator[Result]:
    """Simulate each number of encoders."""
    for encoders in args.encoders:
        yield Simulation(args, encoders).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the options and a line for each number of encoders."""
    args = tyro.cli(Args, args=argv, prog="python -m jobs.bench simulate", description=__doc__)
    shown = replace(args, encode_seconds=round(args.encode_seconds, 3))
    print(", ".join(f"{field.name} {getattr(shown, field.name)}" for field in fields(args)))
    print(f"{'encoders':>8}{'clips/s':>9}{'of ideal':>9}{'committed/s':>12}{'idle':>6}{'driver':>8}", end="")
    print(f"{'commits':>9}{'claims':>8}{'open':>7}  limit")
    for got in simulate(args):
        ideal = got.encoders / args.encode_seconds
        print(
            f"{got.encoders:8d}{got.clips_per_second:9.0f}{got.clips_per_second / ideal:9.2f}"
            f"{got.committed_per_second:12.0f}{max(0.0, 1 - got.busy['encoders']):6.0%}{got.busy['driver']:8.0%}"
            f"{got.busy['commits']:9.0%}{got.busy['claims']:8.0%}{got.open_shards:7d}  {got.limit}",
            flush=True,
        )
    return 0
