"""The driver's account of open shards: receipts in, complete shards out. Pure: no storage, no Ray.

    planned = sum of `clips` receipts over the shard's videos      (an unreadable video counts 1)
    a clip is a latent     iff every one of its chunks has a part receipt
              a rejection  iff not a latent and any receipt rejects it (the lowest chunk's reason)
              open         otherwise
    a shard is complete    iff planned = latents + rejections and nothing is open

The answer depends on the set of receipts only: not on their order, and not on how often each one comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.records import ClipKey, CompleteShard, Receipt, Rejection

K = TypeVar("K")


@dataclass(slots=True)
class _OpenShard:
    num_videos: int | None = None
    num_clips: dict[int, int] = field(default_factory=dict)
    parts: dict[ClipKey, set[int]] = field(default_factory=dict)
    num_chunks: dict[ClipKey, int] = field(default_factory=dict)
    rejections: dict[ClipKey, dict[int, Rejection]] = field(default_factory=dict)
    fault: str = ""


class Ledger:
    """See the module."""

    def __init__(self) -> None:
        self._open: dict[str, _OpenShard] = {}

    def add(self, receipt: Receipt) -> CompleteShard | None:
        """Take a receipt in; return its shard if that completes it. Counts that contradict each other raise."""
        shard = self._open.setdefault(receipt.shard, _OpenShard())
        clip = (receipt.video, receipt.clip)
        match receipt.kind:
            case "part":
                shard.parts.setdefault(clip, set()).add(receipt.chunk)
                _agree(shard.num_chunks, clip, receipt.num_chunks, receipt)
            case "rejection":
                assert receipt.rejection is not None
                shard.rejections.setdefault(clip, {})[receipt.chunk] = receipt.rejection
            case "clips":
                _agree(shard.num_clips, receipt.video, receipt.count, receipt)
            case "videos":
                if shard.num_videos not in (None, receipt.count):
                    raise ValueError(f"{receipt.shard}: {shard.num_videos} videos before, {receipt.count} now")
                shard.num_videos = receipt.count
            case "fault" | "unstored":
                shard.fault = receipt.message
            case "elsewhere":
                del self._open[receipt.shard]
                return None
        return self._complete(receipt.shard, shard)

    def knows(self, shard: str, video: int) -> bool:
        """Whether anything came of that video already."""
        known = self._open.get(shard)
        return known is not None and (
            video in known.num_clips or any(clip[0] == video for clip in known.parts.keys() | known.rejections.keys())
        )

    def forget(self, shard: str) -> None:
        """The shard is committed: late receipts of retried tasks would otherwise open it again."""
        self._open.pop(shard, None)

    def reopen(self, shard: str, clips: list[ClipKey]) -> None:
        """A commit missed parts of these clips: they are open again."""
        for clip in clips:
            self._open[shard].parts.pop(clip, None)

    def still_open(self) -> dict[str, str]:
        """Every open shard with what it still waits for, for the end of a run."""
        return {name: _waits_for(shard) for name, shard in self._open.items()}

    def _complete(self, name: str, shard: _OpenShard) -> CompleteShard | None:
        if shard.num_videos is None or len(shard.num_clips) < shard.num_videos:
            return None
        planned = sum(shard.num_clips.values())
        if len(shard.parts.keys() | shard.rejections.keys()) < planned:  # cheap: asked at every receipt
            return None
        latents = {clip: n for clip, n in shard.num_chunks.items() if len(shard.parts.get(clip, ())) == n}
        rejections = {
            clip: by_chunk[min(by_chunk)] for clip, by_chunk in shard.rejections.items() if clip not in latents
        }
        if planned != len(latents) + len(rejections):
            return None
        return CompleteShard(
            name=name,
            planned=planned,
            latents=dict(sorted(latents.items())),
            rejections=dict(sorted(rejections.items())),
        )


def _agree(counts: dict[K, int], key: K, count: int, receipt: Receipt) -> None:
    if counts.setdefault(key, count) != count:
        raise ValueError(f"{receipt.shard}: {receipt.kind} of {key} said {counts[key]} before and {count} now")


def _waits_for(shard: _OpenShard) -> str:
    if shard.fault:
        return shard.fault
    if shard.num_videos is None:
        return "the number of its videos"
    if missing := [video for video in range(shard.num_videos) if video not in shard.num_clips]:
        return f"the clips of video {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    settled = {clip for clip, n in shard.num_chunks.items() if len(shard.parts.get(clip, ())) == n}
    settled |= shard.rejections.keys()
    wanted = [(video, clip) for video, n in sorted(shard.num_clips.items()) for clip in range(n)]
    missing_clips = [clip for clip in wanted if clip not in settled]
    if not missing_clips:
        if not (unannounced := settled - set(wanted)):
            return "its commit"
        video, clip = min(unannounced)
        return f"an account of clip {clip} of video {video}, which nobody announced"
    video, clip = missing_clips[0]
    return f"clip {clip} of video {video}" + (f" and {len(missing_clips) - 1} more" if len(missing_clips) > 1 else "")
