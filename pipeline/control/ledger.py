"""The driver's account of open shards: receipts in, complete shards out. It uses no storage and no Ray.

    planned = sum of the ClipsReceipts over the shard's videos      (an unreadable video counts 1)
    a clip is a latent     iff every one of its chunks has a PartReceipt
              a rejection  iff not a latent and any receipt rejects it (the lowest chunk's reason)
              open         otherwise
    a shard is complete    iff planned = latents + rejections and nothing is open

The answer depends on the set of receipts only: not on their order, and not on how often each one comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.receipts import (
    ClipsReceipt,
    ElsewhereReceipt,
    FaultReceipt,
    PartReceipt,
    Receipt,
    RejectionReceipt,
    UnstoredReceipt,
    VideosReceipt,
)
from pipeline.records import ClipKey, CompleteShard, Rejection

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
    """The account of the open shards; see the module."""

    def __init__(self) -> None:
        self._open: dict[str, _OpenShard] = {}

    def add(self, receipt: Receipt) -> CompleteShard | None:
        """Add a receipt. Return its shard if it is complete now. Raise ValueError for contradicting counts."""
        shard = self._open.setdefault(receipt.shard, _OpenShard())
        match receipt:
            case PartReceipt(id=id):
                shard.parts.setdefault(id.clip_key, set()).add(id.chunk)
                _agree(shard.num_chunks, id.clip_key, id.num_chunks, f"{id.shard}: chunks of clip")
            case RejectionReceipt(id=id, rejection=rejection):
                shard.rejections.setdefault(id.clip_key, {})[id.chunk] = rejection
            case ClipsReceipt(video=video, count=count):
                _agree(shard.num_clips, video, count, f"{receipt.shard}: clips of video")
            case VideosReceipt(count=count):
                if shard.num_videos not in (None, count):
                    raise ValueError(f"{receipt.shard}: {shard.num_videos} videos before, {count} now")
                shard.num_videos = count
            case FaultReceipt(message=message) | UnstoredReceipt(message=message):
                shard.fault = message
            case ElsewhereReceipt():
                del self._open[receipt.shard]
                return None
        return self._complete(receipt.shard, shard)

    def knows(self, shard: str, video: int) -> bool:
        """Return whether any receipt of this video has come."""
        known = self._open.get(shard)
        return known is not None and (
            video in known.num_clips or any(clip[0] == video for clip in known.parts.keys() | known.rejections.keys())
        )

    def forget(self, shard: str) -> None:
        """Drop a committed shard. Late receipts of retried tasks must not open it again."""
        self._open.pop(shard, None)

    def reopen(self, shard: str, clips: list[ClipKey]) -> None:
        """Open these clips again, because the commit missed parts of them."""
        for clip in clips:
            self._open[shard].parts.pop(clip, None)

    def still_open(self) -> dict[str, str]:
        """Return every open shard with what it waits for."""
        return {name: _waits_for(shard) for name, shard in self._open.items()}

    def _complete(self, name: str, shard: _OpenShard) -> CompleteShard | None:
        if shard.num_videos is None or len(shard.num_clips) < shard.num_videos:
            return None
        planned = sum(shard.num_clips.values())
        if len(shard.parts.keys() | shard.rejections.keys()) < planned:  # a cheap check: it runs for every receipt
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


def _agree(counts: dict[K, int], key: K, count: int, what: str) -> None:
    if counts.setdefault(key, count) != count:
        raise ValueError(f"{what} {key}: {counts[key]} before and {count} now")


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
