"""The line that tells how a run is going, and the table that ends it. Pure: receipts in, text out."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.records import Receipt


@dataclass(slots=True, kw_only=True)
class Progress:
    """Counts of one run, from its receipts and commits."""

    num_shards: int
    """Shards that this run set out to do."""
    source_bytes: dict[str, int]
    """Encoded bytes of each of them."""
    num_done_before: int = 0
    """Shards that earlier runs committed."""
    slots: dict[str, float] = field(default_factory=dict)
    """How many tasks or actors of each stage can work at a time, to tell which stage is the bottleneck."""
    clock: Callable[[], float] = time.monotonic
    committed: set[str] = field(default_factory=set)
    clips: int = 0
    parts: int = 0
    """Staged by this run: work that it did itself."""
    latent_bytes: int = 0
    read_bytes: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "decode": 0.0, "encode": 0.0})
    """Busy time of each stage, summed over its workers."""
    started: float = 0.0
    _refused: defaultdict[str, set[tuple[int, int]]] = field(default_factory=lambda: defaultdict(set))
    """Clips of open shards that were counted as rejected: each chunk of a clip may be refused."""

    def __post_init__(self) -> None:
        self.started = self.clock()

    def add(self, receipt: Receipt) -> None:
        """Count a receipt."""
        self.seconds["read"] += receipt.read_seconds
        self.seconds["decode"] += receipt.decode_seconds
        self.seconds["encode"] += receipt.encode_seconds
        match receipt.kind:
            case "part":
                self.parts += 1
                self.latent_bytes += receipt.num_bytes
                self.clips += receipt.chunk == receipt.num_chunks - 1
            case "rejection":
                assert receipt.rejection is not None
                refused, clip = self._refused[receipt.shard], (receipt.video, receipt.clip)
                self.rejected[receipt.rejection.reason] += clip not in refused
                refused.add(clip)
            case "clips":
                self.read_bytes += receipt.num_bytes

    def commit(self, shard: str) -> None:
        """The shard is done."""
        self.committed.add(shard)
        self._refused.pop(shard, None)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    def bottleneck(self) -> str:
        """The stage whose workers were busy for the largest share of the time."""
        shares = {stage: self.seconds[stage] / n for stage, n in self.slots.items() if n}
        return max(shares, key=lambda stage: shares[stage], default="-")

    def line(self) -> str:
        """One line: shards, clips, rates, rejections, time left by source bytes, bottleneck."""
        elapsed = max(self.elapsed, 1e-9)
        done, total = self.num_done_before + len(self.committed), self.num_done_before + self.num_shards
        bytes_done = sum(self.source_bytes.get(name, 0) for name in self.committed)
        bytes_left = sum(self.source_bytes.values()) - bytes_done
        eta = duration(elapsed * bytes_left / bytes_done) if bytes_done else "?"
        return (
            f"shards {done}/{total}  clips {self.clips}  {self.clips / elapsed:.2f} clips/s  "
            f"{self.read_bytes / elapsed / 1e6:.1f} MB/s in  rejected {self.rejected.total()}  "
            f"ETA {eta}  bottleneck {self.bottleneck()}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What stands on disk after a run, and what the run did for it."""

    planned_shards: int
    done_shards: int
    planned: int
    """Clips of the done shards."""
    latents: int
    rejected: dict[str, int]
    """By reason."""
    latent_bytes: int
    stopped: bool = False
    """The run was asked to stop before it was through."""
    parts_staged: int = 0
    """Chunks that this run encoded and staged itself."""
    wall_seconds: float = 0.0
    busy_seconds: dict[str, float] = field(default_factory=dict)
    """Of this run, by stage, summed over its workers."""
    open_shards: dict[str, str] = field(default_factory=dict)
    """What is left, with what it waits for."""

    @property
    def rejected_share(self) -> float:
        """Rejected clips of planned ones."""
        return sum(self.rejected.values()) / self.planned if self.planned else 0.0

    def table(self) -> str:
        """The table that ends a run."""
        rows = [
            ("shards", f"{self.done_shards} of {self.planned_shards}"),
            ("planned", f"{self.planned} clips"),
            ("latents", f"{self.latents}  ({size(self.latent_bytes)})"),
            ("rejected", str(sum(self.rejected.values()))),
            *((f"  {reason}", str(n)) for reason, n in sorted(self.rejected.items())),
        ]
        if self.wall_seconds:
            busy = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in self.busy_seconds.items())
            rows += [("this run", f"{duration(self.wall_seconds)}, {self.parts_staged} chunks encoded"), ("busy", busy)]
        rows += [(f"left: {shard}", why) for shard, why in sorted(self.open_shards.items())[:10]]
        if len(self.open_shards) > 10:
            rows.append(("left", f"{len(self.open_shards) - 10} more"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def duration(seconds: float) -> str:
    """1:02:03 above an hour, 2:03 above a minute, else 3.1 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: float) -> str:
    """Decimal units with three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.3g} {unit}" if unit != "B" else f"{num_bytes:.0f} B"
