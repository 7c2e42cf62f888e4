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
    planned: int = 0
    """Sum of `num_clips`."""
    parts: dict[ClipKey, int] = field(default_factory=dict)
    """Chunks with a part, as bits: a set for each of a million open clips would take 216 MB."""
    num_chunks: dict[ClipKey, int] = field(default_factory=dict)
    rejections: dict[ClipKey, dict[int, Rejection]] = field(default_factory=dict)
    settled: set[ClipKey] = field(default_factory=set)
    """Clips that are latents or rejections, so that no receipt needs a look at all clips."""
    fault: str = ""

    def is_latent(self, clip: ClipKey) -> bool:
        """Return whether every chunk of the clip has a part."""
        return self.parts.get(clip, 0).bit_count() == self.num_chunks.get(clip)


class Ledger:
    """The account of the open shards; see the module."""

    def __init__(self) -> None:
        self._open: dict[str, _OpenShard] = {}

    def add(self, receipt: Receipt) -> CompleteShard | None:
        """Add a receipt. Return its shard if it is complete now. Raise ValueError for contradicting counts."""
        shard = self._open.get(receipt.shard)
        if shard is None:
            shard = self._open[receipt.shard] = _OpenShard()
        match receipt:
            case PartReceipt(id=id):
                clip = id.clip_key
                shard.parts[clip] = shard.parts.get(clip, 0) | 1 << id.chunk
                _agree(shard.num_chunks, clip, id.num_chunks, receipt.shard, "chunks of clip")
                if shard.is_latent(clip):
                    shard.settled.add(clip)
            case RejectionReceipt(id=id, rejection=rejection):
                shard.rejections.setdefault(id.clip_key, {})[id.chunk] = rejection
                shard.settled.add(id.clip_key)
            case ClipsReceipt(video=video, count=count):
                shard.planned += 0 if video in shard.num_clips else count
                _agree(shard.num_clips, video, count, receipt.shard, "clips of video")
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
        account = self._open[shard]
        for clip in clips:
            account.parts.pop(clip, None)
        account.settled.difference_update(set(clips) - account.rejections.keys())

    def still_open(self) -> dict[str, str]:
        """Return every open shard with what it waits for."""
        return {name: _waits_for(shard) for name, shard in self._open.items()}

    def _complete(self, name: str, shard: _OpenShard) -> CompleteShard | None:
        if shard.num_videos is None or len(shard.num_clips) < shard.num_videos:
            return None
        if len(shard.settled) != shard.planned:
            return None
        latents = {clip: n for clip, n in shard.num_chunks.items() if shard.is_latent(clip)}
        rejections = {
            clip: by_chunk[min(by_chunk)] for clip, by_chunk in shard.rejections.items() if clip not in latents
        }
        return CompleteShard(
            name=name,
            planned=shard.planned,
            latents=dict(sorted(latents.items())),
            rejections=dict(sorted(rejections.items())),
        )


def _agree(counts: dict[K, int], key: K, count: int, shard: str, what: str) -> None:
    if counts.setdefault(key, count) != count:
        raise ValueError(f"{shard}: {what} {key}: {counts[key]} before and {count} now")


def _waits_for(shard: _OpenShard) -> str:
    if shard.fault:
        return shard.fault
    if shard.num_videos is None:
        return "the number of its videos"
    if missing := [video for video in range(shard.num_videos) if video not in shard.num_clips]:
        return f"the clips of video {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
    wanted = [(video, clip) for video, n in sorted(shard.num_clips.items()) for clip in range(n)]
    missing_clips = [clip for clip in wanted if clip not in shard.settled]
    if not missing_clips:
        if not (unannounced := shard.settled - set(wanted)):
            return "its commit"
        video, clip = min(unannounced)
        return f"an account of clip {clip} of video {video}, which nobody announced"
    video, clip = missing_clips[0]
    return f"clip {clip} of video {video}" + (f" and {len(missing_clips) - 1} more" if len(missing_clips) > 1 else "")
