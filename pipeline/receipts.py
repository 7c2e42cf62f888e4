"""Receipts: small rows that tell the driver what became of a chunk, a clip, a video or a shard."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.records import Chunk, ChunkId, Latent, Rejection, Video


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReceipt:
    """The latent of this chunk is staged."""

    id: ChunkId
    num_bytes: int = 0
    """Size of the latent."""
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    stage_seconds: float = 0.0

    @property
    def shard(self) -> str:
        """Name of its shard, as every record has it."""
        return self.id.shard


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionReceipt:
    """This clip is rejected; this chunk of it showed the reason."""

    id: ChunkId
    rejection: Rejection
    verdict: bool = False
    """The guard decided. Such a rejection is staged, so that the next run does not try the clip again."""
    decode_seconds: float = 0.0

    @property
    def shard(self) -> str:
        """Name of its shard, as every record has it."""
        return self.id.shard


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipsReceipt:
    """This video has `count` clips."""

    shard: str
    video: int
    count: int
    num_bytes: int = 0
    """Size of the encoded video."""
    read_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VideosReceipt:
    """This shard has `count` videos."""

    shard: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultReceipt:
    """A source could not be read: the shard stays open."""

    shard: str
    message: str
    video: int = -1
    """The video whose source it was; -1: the source of the shard."""
    rejection: Rejection | None = None
    """The rejection of that video, for a run that gives up on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnstoredReceipt:
    """The output could not be written: the shard stays open."""

    shard: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ElsewhereReceipt:
    """This run does not process the shard: another run does, or a stop was asked for."""

    shard: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoEncoderReceipt:
    """No encoder is left: the run ends."""

    shard: str
    message: str


Receipt = (
    PartReceipt
    | RejectionReceipt
    | ClipsReceipt
    | VideosReceipt
    | FaultReceipt
    | UnstoredReceipt
    | ElsewhereReceipt
    | NoEncoderReceipt
)

Record = Video | Chunk | Latent | Receipt
"""All that travels from one stage to the next."""
