"""The decode stage: one video in, the chunks of its clips out, in a fixed order. It does not use Ray.

    Video -> ClipsReceipt (how many clips it has), then for each clip its Chunks or its RejectionReceipt

A clip of more than `chunk_windows` windows is cut on the window grid. Each later chunk begins with context windows,
which overlap the chunk before it. One decoding pass yields all chunks of all clips of a video. Chunks that an earlier
run staged are skipped. That changes no other chunk, because seeking gives the same frames as linear decoding.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from pipeline.decode import DecodedClip, DecodeSpec, Timeline, iter_clips, measure, probe
from pipeline.errors import NotFoundError, StorageError, VideoError
from pipeline.guard.alone import DiedAloneError, alone, within_memory
from pipeline.guard.deadline import deadline
from pipeline.guard.strikes import Guard, attempt
from pipeline.receipts import ClipsReceipt, FaultReceipt, Receipt, RejectionReceipt
from pipeline.records import Chunk, ChunkId, ClipFacts, Rejection, Video, clip_id
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule
from pipeline.stages.clip_grid import PlannedClip, plan_clips
from pipeline.stages.lazy import LazySequence
from pipeline.storage import read_object
from pipeline.storage.addresses import redacted
from vae.info import VAEInfo
from vae.shapes import ChunkSpan

_RATE_SECONDS = Fraction(4)
"""Shortest stretch in which a rate is looked for: in milliseconds, 24 and 24000/1001 differ after 1 to 2 seconds."""

Decode = Callable[[bytes | memoryview, Sequence[DecodeSpec]], Iterator[DecodedClip | VideoError]]
"""`iter_clips`, or its replacement in a test. It yields one result per DecodeSpec, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The decode stage with its settings. Call it with a Video."""

    clip: ClipRule
    latent: LatentRule
    info: VAEInfo
    deadline: float
    """Seconds for one clip."""
    decode: Decode = iter_clips

    def __call__(self, video: Video, guard: Guard) -> Iterator[Chunk | Receipt]:
        """Decode a video; see the module. Bad content becomes Rejections, a storage fault becomes a FaultReceipt."""
        if self.clip.require_caption and not video.caption:
            yield from reject_video(video, "filtered_no_caption", "no caption stands beside it")
            return
        with attempt(guard, f"{video.shard}/{video.video}/") as strikes:
            try:
                source, video = self._fetched(video)
            except NotFoundError as error:
                yield from reject_video(video, "not_found", str(error))
            except VideoError as error:
                yield from reject_video(video, error.reason, str(error))
            except StorageError as error:
                unreachable = _rejection(video, "unreachable", str(error))
                message = f"{redacted(video.uri)}: {error}"
                yield FaultReceipt(shard=video.shard, video=video.video, message=message, rejection=unreachable)
            else:
                yield from self._clips(video, source, guard if strikes else None)

    def spans(self, num_frames: int) -> tuple[ChunkSpan, ...]:
        """Return how a clip of this number of frames is cut into chunks."""
        latent = self.latent
        return self.info.spans(num_frames, chunk_windows=latent.chunk_windows, context=latent.context_windows)

    def _fetched(self, video: Video) -> tuple[bytes | memoryview, Video]:
        """Return the encoded video, and its record with the time of reading."""
        if video.payload is not None:
            return video.payload, video
        start = time.perf_counter()
        data = read_object(
            video.uri,
            size=video.size,
            etag=video.etag,
            max_bytes=self.clip.max_bytes,
            public_only=video.public_only,
        )
        return data, replace(video, read_seconds=video.read_seconds + time.perf_counter() - start)

    def _clips(self, video: Video, source: bytes | memoryview, guard: Guard | None) -> Iterator[Chunk | Receipt]:
        """Yield the records of all clips. With a guard, every clip is a separate attempt, and suspects run alone."""
        suspects = guard.suspects(f"{video.shard}/{video.video}/") if guard else frozenset()
        try:
            clips, timeline = self._plan(video, source, guard, suspects)
        except VideoError as error:
            yield from reject_video(video, error.reason, str(error))
            return
        except DiedAloneError as error:
            yield from reject_video(
                video, "decode_timeout" if error.timed_out else "decode_crashed", str(error), verdict=True
            )
            return
        lost = list[int]()
        if video.only is not None:
            clips = [clip for clip in clips if clip.clip in video.only]
            lost = sorted(set(video.only) - {clip.clip for clip in clips})
        yield ClipsReceipt(
            shard=video.shard,
            video=video.video,
            count=len(clips) + len(lost),
            num_bytes=len(source),
            read_seconds=video.read_seconds,
        )
        for clip in lost:
            yield _reject(video, clip, "not_found", f"the video has no clip {clip} any more")
        pieces = [piece for clip in clips if clip.clip not in video.verdicts for piece in self._pieces(video, clip)]
        together = [p for p in pieces if not p.clip.refused and _key(video, p.clip.clip) not in suspects]
        # A measured video is not measured again. A test's replacement measures for itself.
        decode = partial(iter_clips, timeline=timeline) if self.decode is iter_clips else self.decode
        stream = iter(decode(source, LazySequence(lambda piece: piece.spec, together)))
        for piece in pieces:
            start = time.perf_counter()
            if piece.clip.refused is not None:
                result: DecodedClip | VideoError | DiedAloneError = piece.clip.refused
            elif (key := _key(video, piece.clip.clip)) in suspects:
                result = self._alone(source, piece)
            else:
                with self._watched(guard, key):
                    result = next(stream)
            yield piece.record(video, result, time.perf_counter() - start)

    def _plan(
        self, video: Video, source: bytes | memoryview, guard: Guard | None, suspects: frozenset[str]
    ) -> tuple[list[PlannedClip], Timeline | None]:
        """Return the clips of the video, and its Timeline if it was measured. This may run alone, because headers and
        packets can kill a process too."""
        in_chunks = any(len(self.spans(num_frames)) > 1 for num_frames, _, _ in self.clip.shapes)
        look = partial(_look, self.clip, self.info, in_chunks, video.start, video.end)
        key = _key(video, "plan")
        if key in suspects:
            planned: tuple[list[PlannedClip], Timeline | None] = alone(
                self.deadline, within_memory, look, bytes(source)
            )
            return planned
        with self._watched(guard, key):
            return look(source)

    @contextlib.contextmanager
    def _watched(self, guard: Guard | None, key: str) -> Iterator[None]:
        with attempt(guard, key) if guard else contextlib.nullcontext(), deadline(self.deadline):
            yield

    def _pieces(self, video: Video, clip: PlannedClip) -> Iterator[_Piece]:
        spans = self.spans(clip.num_frames)
        for chunk, span in enumerate(spans[:1] if clip.refused else spans):
            if (clip.clip, chunk) not in video.staged:
                identity = ChunkId(
                    shard=video.shard, video=video.video, clip=clip.clip, chunk=chunk, num_chunks=len(spans)
                )
                yield _Piece(id=identity, clip=clip, span=span, info=self.info)

    def _alone(self, source: bytes | memoryview, piece: _Piece) -> DecodedClip | VideoError | DiedAloneError:
        try:
            decoded: DecodedClip | VideoError = alone(
                self.deadline, within_memory, _decode_one, self.decode, bytes(source), piece.spec
            )
        except DiedAloneError as error:
            return error
        return decoded


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """One chunk of one clip, before it is decoded."""

    id: ChunkId
    clip: PlannedClip
    span: ChunkSpan
    info: VAEInfo

    @property
    def spec(self) -> DecodeSpec:
        span, whole = self.span, self.clip.spec
        return replace(whole, offset=whole.offset + span.start, num_frames=span.stop - span.start)

    def record(
        self, video: Video, result: DecodedClip | VideoError | DiedAloneError, seconds: float
    ) -> Chunk | Receipt:
        """Return the decoded chunk, or the receipt of its rejection."""
        if not isinstance(result, DecodedClip):
            is_verdict = isinstance(result, DiedAloneError)
            reason = result.reason if isinstance(result, VideoError) else _death(result)
            rejection = Rejection(
                reason=reason,
                stage="decode",
                message=str(result),
                key=video.key,
                uri=redacted(video.uri),
                start=str(self.clip.start),
            )
            return RejectionReceipt(id=self.id, rejection=rejection, verdict=is_verdict, decode_seconds=seconds)
        return Chunk(
            id=self.id,
            frames=result.frames,
            windows=self.span.windows,
            num_context=self.span.num_context_windows,
            latent_start=self._latent_frames(self.span.body),
            clip_latent_frames=self._latent_frames(self.clip.num_frames),
            facts=self._facts(video, result),
            decode_seconds=seconds,
        )

    def _latent_frames(self, num_frames: int) -> int:
        return self.info.latent_shape(num_frames, self.clip.height, self.clip.width)[1] if num_frames else 0

    def _facts(self, video: Video, decoded: DecodedClip) -> ClipFacts:
        """Return the facts of the clip and of this chunk's body frames."""
        clip, context = self.clip, self.span.body - self.span.start
        fps = clip.spec.fps
        return ClipFacts(
            id=clip_id(video.shard, video.video, clip.clip),
            key=video.key,
            caption=video.caption,
            uri=redacted(video.uri),
            start=str(clip.start),
            end=None if fps is None else str(clip.start + clip.num_frames / fps),
            fps=None if fps is None else str(fps),
            num_frames=clip.num_frames,
            height=clip.height,
            width=clip.width,
            timestamps=tuple(decoded.seconds[context:].tolist()),
            num_repaired=sum(decoded.repaired[context:]),
            source=decoded.facts(),
            extra=video.extra,
        )


def reject_video(video: Video, reason: str, message: str, *, verdict: bool = False) -> Iterator[Receipt]:
    """Reject a whole video. It counts as one clip."""
    yield ClipsReceipt(shard=video.shard, video=video.video, count=1, read_seconds=video.read_seconds)
    yield _reject(video, 0, reason, message, verdict=verdict)


def _reject(video: Video, clip: int, reason: str, message: str, *, verdict: bool = False) -> Receipt:
    rejection = _rejection(video, reason, message)
    id = ChunkId(shard=video.shard, video=video.video, clip=clip)
    return RejectionReceipt(id=id, rejection=rejection, verdict=verdict)


def _rejection(video: Video, reason: str, message: str) -> Rejection:
    return Rejection(reason=reason, stage="decode", message=message, key=video.key, uri=redacted(video.uri))


def _look(
    rule: ClipRule,
    info: VAEInfo,
    in_chunks: bool,
    start: Fraction | None,
    end: Fraction | None,
    source: bytes | memoryview,
) -> tuple[list[PlannedClip], Timeline | None]:
    """Plan the clips of a video, and return its Timeline if it was measured. It is measured if clips have several
    chunks, to fix their lengths, and for a start or an end, which may mean a frame."""
    is_exact = rule.times == "exact"
    has_range = is_exact and (start is not None or end is not None)
    timeline = measure(source, rule.times) if rule.needs_timeline or in_chunks or has_range else None
    until = (
        None if timeline or not is_exact or rule.rate is None else max(_RATE_SECONDS, max(rule.shapes)[0] / rule.rate)
    )
    found = probe(source, max_pixels=rule.max_pixels, rate_until=until)
    return plan_clips(
        found, timeline, rule, start=start, end=end, accepted=lambda num_frames: info.nearest(num_frames)[0]
    ), timeline


def _decode_one(decode: Decode, source: bytes, spec: DecodeSpec) -> DecodedClip | VideoError:
    return next(iter(decode(source, [spec])))


def _key(video: Video, clip: int | str) -> str:
    return f"{video.shard}/{video.video}/{clip}/decode"


def _death(error: Exception) -> str:
    return "decode_timeout" if isinstance(error, DiedAloneError) and error.timed_out else "decode_crashed"
