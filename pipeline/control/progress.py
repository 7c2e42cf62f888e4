"""How far a run of clips is, from its receipts. It uses no storage and no Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.output.wording import size
from pipeline.receipts import ClipsReceipt, ElsewhereReceipt, PartReceipt, Receipt, RejectionReceipt, VideosReceipt
from pipeline.runs.progress import Metric, Progress
from pipeline.runs.recent import Recent

STAGES = ("read", "decode", "encode", "stage")


@dataclass(slots=True, kw_only=True)
class _OpenShard:
    """What is known of a shard in work."""

    num_videos: int | None
    announced: set[int] = field(default_factory=set)
    """Videos whose number of clips is known. A retried task repeats this receipt like all others."""
    num_clips: int = 0
    """Clips of these videos."""
    read_bytes: int = 0
    refused: set[tuple[int, int]] = field(default_factory=set)
    """Rejected clips. Several chunks of one clip may be rejected."""
    settled: set[tuple[int, int]] = field(default_factory=set)
    """Clips that are latents or rejections now."""

    @property
    def is_told(self) -> bool:
        """Whether the number of its clips is known."""
        return self.num_videos is not None and len(self.announced) >= self.num_videos

    def share(self, size: int) -> float:
        """Return the share of the shard that is done, in [0, 1]: settled clips of known ones, times the known part."""
        if not self.num_clips:
            return 0.0
        announced = len(self.announced) / self.num_videos if self.num_videos else self.read_bytes / size
        return min(announced, 1.0) * min(len(self.settled) / self.num_clips, 1.0)


@dataclass(slots=True, kw_only=True)
class ClipProgress(Progress):
    """The counts of one run, from its receipts."""

    source_bytes: dict[str, int]
    """Encoded bytes of each shard."""
    num_videos: dict[str, int] = field(default_factory=dict)
    """Number of videos of each shard, where the plan knows it."""
    clips: int = 0
    parts: int = 0
    """Parts that this run staged."""
    latent_bytes: int = 0
    read_bytes: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Busy time of each stage, summed over its workers."""
    _num_clips: int = 0
    """Clips of the videos that told their number."""
    _recent: Recent = field(default_factory=Recent)
    _first_clip: float | None = None
    """When the first clip ended. The time before it is start-up and says nothing about speed."""
    _open: dict[str, _OpenShard] = field(default_factory=dict)
    _all_bytes: int = 0
    """Sum of `source_bytes`, each at least 1."""
    _done_bytes: int = 0
    """The same of the shards that are done."""

    def __post_init__(self) -> None:
        Progress.__post_init__(self)
        self._all_bytes = sum(max(size, 1) for size in self.source_bytes.values())

    def add(self, receipt: Receipt) -> None:
        """Count a receipt."""
        name = receipt.shard
        if isinstance(receipt, ElsewhereReceipt):
            return
        self.elsewhere.discard(name)
        shard = self._open.get(name)
        if shard is None:
            shard = self._open[name] = _OpenShard(num_videos=self.num_videos.get(name))
        match receipt:
            case PartReceipt(id=id):
                self.seconds["decode"] += receipt.decode_seconds
                self.seconds["encode"] += receipt.encode_seconds
                self.seconds["stage"] += receipt.stage_seconds
                self.parts += 1
                self.latent_bytes += receipt.num_bytes
                if id.chunk == id.num_chunks - 1:
                    self.clips += 1
                    self._settle(shard, id.clip_key)
            case RejectionReceipt(id=id, rejection=rejection):
                self.seconds["decode"] += receipt.decode_seconds
                self.rejected[rejection.reason] += id.clip_key not in shard.refused
                shard.refused.add(id.clip_key)
                self._settle(shard, id.clip_key)
            case ClipsReceipt():
                self.seconds["read"] += receipt.read_seconds
                self.read_bytes += receipt.num_bytes
                if receipt.video not in shard.announced:
                    shard.announced.add(receipt.video)
                    shard.num_clips += receipt.count
                    self._num_clips += receipt.count
                    shard.read_bytes += receipt.num_bytes
            case VideosReceipt():
                shard.num_videos = receipt.count
        if name in self.done:  # a retried task repeats its receipts
            del self._open[name]

    def _settle(self, shard: _OpenShard, clip: tuple[int, int]) -> None:
        shard.settled.add(clip)
        self.doing = ""
        now = self.clock()
        self._first_clip = now if self._first_clip is None else self._first_clip
        if self._recent.is_due(now):
            self._recent.add(now, *self._grown())

    def finish(self, shard: str) -> None:
        """Count a shard that this run or another one committed."""
        self._done_bytes += 0 if shard in self.done else self._size(shard)
        Progress.finish(self, shard)
        self._open.pop(shard, None)

    def _size(self, shard: str) -> int:
        """Return the encoded bytes of a shard, at least 1; 0 for a shard that is not of this run."""
        return max(self.source_bytes[shard], 1) if shard in self.source_bytes else 0

    def bottleneck(self) -> str:
        """Return the stage whose workers were busy for the largest share of the time."""
        shares = {stage: self.seconds[stage] / n for stage, n in self.slots.items() if n}
        return max(shares, key=lambda stage: shares[stage], default="-")

    def _grown(self) -> tuple[float, float, float]:
        """Return what grows while the run makes progress: clips, bytes read, and source bytes whose clips are done."""
        done = float(self._done_bytes)
        for name, shard in list(self._open.items()):
            num_bytes = self._size(name)
            done += num_bytes * shard.share(num_bytes) if num_bytes else 0.0
        return self.clips, self.read_bytes, done

    def _rates(self) -> tuple[float, ...]:
        return self._recent.rates(self.clock(), *self._grown())

    def time_left(self) -> float | None:
        """Return the seconds left, by source bytes, at the speed of the last minute; None while that is not known."""
        if self._first_clip is None:
            return None
        left, rates = self._all_bytes - self._grown()[2], self._rates()
        if left <= 0:
            return 0.0
        return left / rates[2] if rates and rates[2] > 0 else None

    def num_open(self) -> int:
        """Return how many shards are in work here."""
        return len(self._open)

    def encoder_idle_share(self) -> float | None:
        """Return the share of the encoders' time since the first clip ended in which they waited; None before."""
        if self._first_clip is None or not self.slots.get("encode"):
            return None
        seconds = max(self.clock() - self._first_clip, 1e-9)
        return min(max(1 - self.seconds["encode"] / seconds / self.slots["encode"], 0.0), 1.0)

    def numbers(self) -> dict[str, object]:
        """Return the numbers of its own, as JSON values."""
        return {
            "clips": self.clips,
            "rejected": dict(self.rejected),
            "read_bytes": self.read_bytes,
            "latent_bytes": self.latent_bytes,
            "busy_seconds": {stage: round(seconds, 3) for stage, seconds in self.seconds.items()},
        }

    def metrics(self) -> Iterator[Metric]:
        """Yield the numbers for Prometheus."""
        yield from Progress.metrics(self)
        yield Metric(name="clips", help="Clips that became latents", value=self.clips)
        yield Metric(name="read_bytes", help="Encoded video that was read", value=self.read_bytes)
        yield Metric(name="latent_bytes", help="Latents that were staged", value=self.latent_bytes)
        for reason, clips in dict(self.rejected).items():
            yield Metric(name="rejected", help="Clips that were rejected", value=clips, tags={"reason": reason})
        for stage, seconds in dict(self.seconds).items():
            busy = "Busy time of all workers of a stage"
            yield Metric(name="busy_seconds", help=busy, value=seconds, tags={"stage": stage})
        if (idle := self.encoder_idle_share()) is not None:
            waiting = "Idle time of the encoders since the first clip ended"
            yield Metric(name="encoder_idle_share", help=waiting, value=idle, is_total=False)

    def head(self) -> str:
        """Return how the line begins."""
        return f"{Progress.head(self)}  clips {self.clips}{self._of_how_many()}"

    def rates(self) -> str:
        """Return the rates of the last minute, time left, rejections and bottleneck."""
        rates = self._rates()
        clips, num_bytes = (f"{rates[0]:.3g}", f"{size(rates[1])}/s") if rates else ("?", "?")
        refused = f"rejected {self.rejected.total()}  " if self.rejected else ""
        return f"{clips} clips/s  ETA {self.eta()}  {refused}bottleneck {self.bottleneck()}  {num_bytes} in"

    def _of_how_many(self) -> str:
        """Return how many latents there will be if no further clip is refused: "/9", or "/9+" while more may come."""
        known = self._num_clips - self.rejected.total()
        if not self._num_clips or known < self.clips:
            return ""
        told = sum(shard.is_told for shard in list(self._open.values())) + len(self.done)
        return f"/{known}{'' if told >= self.num_shards else '+'}"
