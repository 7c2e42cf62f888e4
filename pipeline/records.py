"""The nouns that travel through the graph, all frozen. Shards are in shards.py, receipts in receipts.py.

read    Shard -> Video ...            , last a VideosReceipt (this shard has m videos)
decode  Video -> Chunk | Receipt ...  , per video a ClipsReceipt (this video has n clips)
encode  Chunk -> Latent | RejectionReceipt
stage   Latent -> PartReceipt
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np

Reason = Literal[
    "not_found",
    "unreadable",
    "no_video_stream",
    "unsupported_codec",
    "unsupported_edits",
    "no_frames",
    "corrupt",
    "truncated",
    "too_short",
    "limit_exceeded",
    "duplicate_key",
    "bad_sidecar",
    "bad_row",
    "unsafe_uri",
    "unsafe_member",
    "tar_damaged",
    "hdr",
    "filtered_no_caption",
    "filtered_min_size",
    "filtered_min_duration",
    "filtered_max_duration",
    "filtered_min_fps",
    "filtered_max_hold",
    "filtered_static",
    "nonfinite",
    "unreachable",
    "decode_crashed",
    "decode_timeout",
    "encode_crashed",
    "encode_timeout",
]
"""Why a clip, a whole video, or the rest of a tar was refused. The last four depend on the machine (see guard.py), and
`unreachable`, given only with --give-up-after, on the network (see unreachable.py)."""

REASONS: frozenset[str] = frozenset(get_args(Reason))

Stage = Literal["read", "decode", "encode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """One sample of a shard: encoded bytes (tar) or an address (files, table), with the facts that its rows keep."""

    shard: str
    video: int
    """Ordinal in the shard, in source order."""
    key: str
    """The tar key, the path under the source, or the table's `video` value."""
    uri: str
    """The video's own address; `tar_uri#member` in a tar."""
    payload: bytes | memoryview | None
    """The encoded file, or None: decode opens `uri`."""
    size: int | None = None
    etag: str | None = None
    """As planned; decode refuses another object under the same address."""
    public_only: bool = False
    """An untrusted table names `uri`, so it must not lead into the local network."""
    caption: str | None = None
    start: Fraction | None = None
    """Seconds after the first frame, from a table."""
    end: Fraction | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Every other column or sidecar field; lands in `extra_json`."""
    only: tuple[int, ...] | None = None
    """Indices of the clips to make when rejected clips are retried; None: all."""
    staged: tuple[tuple[int, int], ...] = ()
    """(clip, chunk) already staged by an earlier run: not decoded again."""
    verdicts: tuple[int, ...] = ()
    """Clips that an earlier run's guard rejected: not tried again."""
    read_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkId:
    """Which chunk of which clip of which video of which shard."""

    shard: str
    video: int
    """Ordinal in the shard."""
    clip: int
    """Index in the video."""
    chunk: int = 0
    """Index in the clip."""
    num_chunks: int = 1
    """Chunks of the clip."""

    @property
    def clip_key(self) -> ClipKey:
        """Which clip of the shard."""
        return self.video, self.clip

    def to_row(self) -> dict[str, Any]:
        """The fields as a plain dict."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFacts:
    """The output row of a clip without its latent. It holds nothing about the path, the time or the attempt."""

    id: str
    """See clip_id."""
    key: str
    caption: str | None
    uri: str
    """The address of the video, without credentials."""
    start: str
    """Begin of the clip in seconds, as "p/q"."""
    end: str | None
    """End of the clip in seconds, as "p/q"; None where consecutive source frames are taken."""
    fps: str | None
    """Frame rate of the grid, as "p/q"; None where consecutive source frames are taken."""
    num_frames: int
    """Frames of the whole clip."""
    height: int
    width: int
    timestamps: tuple[float, ...]
    """Source time in seconds of each body frame."""
    num_repaired: int
    """Body frames that replace a damaged one."""
    source: dict[str, Any]
    """Facts of the source, for `source_json` (see DecodedClip.facts)."""
    extra: dict[str, Any]
    """For `extra_json`."""

    def to_row(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {name: getattr(self, name) for name in self.__slots__}

    @staticmethod
    def from_row(row: dict[str, Any]) -> ClipFacts:
        """Inverse of to_row, also after a way through JSON."""
        return ClipFacts(**row | {"timestamps": tuple(row["timestamps"])})

    @staticmethod
    def joined(pieces: Sequence[ClipFacts], source: dict[str, Any]) -> ClipFacts:
        """The facts of a clip from those of its chunks, in order; `source` are the merged facts of the source."""
        timestamps = tuple(time for piece in pieces for time in piece.timestamps)
        num_repaired = sum(piece.num_repaired for piece in pieces)
        return replace(pieces[0], timestamps=timestamps, num_repaired=num_repaired, source=source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The sampled frames of one clip that travel from decode to encode: leading context frames, then body frames."""

    id: ChunkId
    frames: np.ndarray
    """uint8 [T, H, W, 3], context first."""
    windows: tuple[int, ...]
    """Lengths of the windows to encode in order; they sum to T."""
    num_context: int
    """Number of leading windows that only fill the caches."""
    latent_start: int
    """Index of the body's first latent frame in the clip's latent."""
    clip_latent_frames: int
    """Latent frames of the whole clip."""
    facts: ClipFacts
    """The facts of the body frames of this chunk."""
    decode_seconds: float = 0.0

    @property
    def shard(self) -> str:
        """Name of its shard, as every record has it."""
        return self.id.shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """The scaled latent of one chunk's body, as the output will hold it."""

    id: ChunkId
    payload: bytes | memoryview
    """Little-endian, C order."""
    shape: tuple[int, ...]
    """(C, T', H', W'); C doubled for stored moments."""
    dtype: str
    facts: ClipFacts
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def shard(self) -> str:
        """Name of its shard, as every record has it."""
        return self.id.shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """The recorded refusal of a clip, a whole video, or the rest of a tar."""

    reason: str
    stage: Stage
    message: str
    key: str = ""
    uri: str = ""
    start: str | None = None
    """Start of the clip in seconds as "p/q", where known: with uri and clip index it names the clip again."""

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"reason must be one of {sorted(REASONS)}, got {self.reason!r}")


def clip_id(shard: str, video: int, clip: int) -> str:
    """32 hex digits of sha256 over shard, video ordinal and clip index: free of Spec and output."""
    return hashlib.sha256(f"{shard}/{video}/{clip}".encode()).hexdigest()[:32]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, ASCII: the same text for the same value everywhere. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


ClipKey = tuple[int, int]
"""(video ordinal, clip index)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteShard:
    """A shard that is ready to commit: each planned clip is a latent or a rejection."""

    name: str
    planned: int
    """Clips. Equals len(latents) + len(rejections)."""
    latents: dict[ClipKey, int]
    """Number of chunks of each clip that became a latent."""
    rejections: dict[ClipKey, Rejection]
