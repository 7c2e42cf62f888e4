"""Laws: a clip cut into chunks is the clip; what was staged is left out and changes nothing else; a clip that kills its
process costs that clip alone; decoding holds a constant number of clips, whatever the video."""

import os
import signal
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vae
from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, iter_clips, measure, probe
from pipeline.errors import CorruptVideoError, VideoError
from pipeline.guard.strikes import MAX_STRIKES, Strikes
from pipeline.receipts import ClipsReceipt, FaultReceipt, Receipt
from pipeline.records import Chunk, Video
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule
from pipeline.stages.clip_grid import plan_clips
from pipeline.stages.decode_video import Decoder
from tests.small import CLIP, HEALTHY, video
from tests.videos import make_video

INFO = vae.load_vae("tiny").info
ALL = replace(CLIP, clips="all")


def decoder(clip: ClipRule = ALL, latent: LatentRule | None = None, **kwargs: object) -> Decoder:
    return Decoder(clip=clip, latent=latent or LatentRule(), info=INFO, deadline=HEALTHY, **kwargs)  # type: ignore[arg-type]


def run(made: Decoder, of: Video, guard: Strikes | None = None) -> tuple[list[Chunk], list[Any]]:
    records = list(made(of, guard or Strikes()))
    chunks = [record for record in records if isinstance(record, Chunk)]
    return chunks, [record for record in records if isinstance(record, Receipt)]


def test_a_video_announces_its_clips_and_sends_them_in_order() -> None:
    chunks, (announced,) = run(decoder(replace(ALL, num_frames=5)), video())
    assert announced == ClipsReceipt(shard="s", video=0, count=3, num_bytes=announced.num_bytes)
    assert [(chunk.id.clip, chunk.facts.start, chunk.facts.end) for chunk in chunks] == [
        (0, "0", "5/8"),
        (1, "5/8", "5/4"),
        (2, "5/4", "15/8"),
    ]
    assert chunks[0].facts.timestamps == (0, 0.125, 0.25, 0.375, 0.5)
    assert len({chunk.facts.id for chunk in chunks}) == 3


def test_chunks_overlap_by_their_context_and_join_to_the_clip() -> None:
    clip = replace(ALL, num_frames=33, fps="24")
    source = video()
    (whole,), _ = run(decoder(clip), source)
    cut, _ = run(decoder(clip, LatentRule(chunk_windows=2, context="1")), source)
    assert [chunk.windows for chunk in cut] == [(9, 8), (8, 8, 8)]
    assert [chunk.num_context for chunk in cut] == [0, 1]
    assert [(chunk.latent_start, chunk.clip_latent_frames) for chunk in cut] == [(0, 9), (5, 9)]
    bodies = [cut[0].frames, cut[1].frames[8:]]
    np.testing.assert_array_equal(np.concatenate(bodies), whole.frames)
    np.testing.assert_array_equal(cut[1].frames[:8], whole.frames[9:17])
    assert cut[0].facts.timestamps + cut[1].facts.timestamps == whole.facts.timestamps


def test_what_was_staged_is_not_decoded_again() -> None:
    rule = LatentRule(chunk_windows=2, context="1")
    clip = replace(ALL, num_frames=33, fps="24")
    every, _ = run(decoder(clip, rule), video())
    (left,), (announced,) = run(decoder(clip, rule), video(staged=((0, 0),)))
    assert announced.count == 1
    assert (left.id.clip, left.id.chunk) == (0, 1)
    np.testing.assert_array_equal(left.frames, every[1].frames)
    assert left.facts == every[1].facts


def test_a_verdict_of_an_earlier_run_is_kept() -> None:
    chunks, (announced,) = run(decoder(replace(ALL, num_frames=5)), video(verdicts=(1,)))
    assert announced.count == 3
    assert [chunk.id.clip for chunk in chunks] == [0, 2]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"", "unreadable"), (b"not a video\n" * 99, "unreadable")],
)
def test_a_file_that_is_no_video_counts_as_one_rejected_clip(payload: bytes, reason: str) -> None:
    chunks, (announced, rejected) = run(decoder(), replace(video(), payload=payload))
    assert not chunks
    assert announced.count == 1
    assert (rejected.id.clip, rejected.rejection.reason, rejected.rejection.key) == (0, reason, "k")


def test_a_missing_object_is_rejected_and_a_storage_fault_is_not(tmp_path: Path) -> None:
    missing = replace(video(), payload=None, uri=str(tmp_path / "none.mp4"))
    _, (announced, rejected) = run(decoder(), missing)
    assert announced.count == 1
    assert rejected.rejection.reason == "not_found"
    changed = tmp_path / "changed.mp4"
    changed.write_bytes(b"x")
    _, (fault,) = run(decoder(), replace(missing, uri=str(changed), size=2, etag="other"))
    assert isinstance(fault, FaultReceipt)
    assert "changed.mp4" in fault.message


def test_a_video_without_a_caption_is_refused_where_one_is_required() -> None:
    made = decoder(replace(ALL, require_caption=True))
    for caption in (None, ""):
        chunks, (announced, rejected) = run(made, replace(video(), caption=caption))
        assert (chunks, announced.count) == ([], 1)
        assert rejected.rejection.reason == "filtered_no_caption"
    assert run(made, replace(video(), caption="a weave"))[0]
    assert run(decoder(), replace(video(), caption=None))[0]


def test_a_clip_that_is_tried_again_and_is_not_there_any_more_is_a_rejection() -> None:
    chunks, (announced, rejected) = run(decoder(replace(ALL, num_frames=5)), video(only=(1, 7)))
    assert [chunk.id.clip for chunk in chunks] == [1]
    assert (announced.count, rejected.id.clip, rejected.rejection.reason) == (2, 7, "not_found")


def test_start_and_end_bound_the_grid() -> None:
    chunks, _ = run(decoder(replace(ALL, num_frames=5)), video(start=Fraction(1, 2), end=Fraction(7, 4)))
    assert [(chunk.facts.start, chunk.facts.end) for chunk in chunks] == [("1/2", "9/8"), ("9/8", "7/4")]


def fails_on_the_second(source: bytes | memoryview, specs: Sequence[DecodeSpec]) -> Iterator[DecodedClip | VideoError]:
    for spec, result in zip(specs, iter_clips(source, specs), strict=True):
        yield CorruptVideoError("bad luck") if spec.start == Fraction(5, 8) else result


def dies_on_the_second(source: bytes | memoryview, specs: Sequence[DecodeSpec]) -> Iterator[DecodedClip | VideoError]:
    for spec, result in zip(specs, iter_clips(source, specs), strict=True):
        if spec.start == Fraction(5, 8):
            os.kill(os.getpid(), signal.SIGKILL)
        yield result


def test_an_error_in_one_clip_rejects_that_clip() -> None:
    chunks, (_, rejected) = run(decoder(replace(ALL, num_frames=5), decode=fails_on_the_second), video())
    assert [chunk.id.clip for chunk in chunks] == [0, 2]
    assert (rejected.id.clip, rejected.rejection.reason, rejected.rejection.start) == (1, "corrupt", "5/8")


def test_clips_are_attempts_of_their_own_only_where_a_strike_stands() -> None:
    """An attempt that never ended at the video, or at anything in it, makes its clips watched one by one."""

    class Noted(Strikes):
        def begin(self, key: str) -> int:
            begun.append(key)
            return super().begin(key)

    guard, made = Noted(), decoder(ClipRule(num_frames=9, height=64, width=64, clips="all"))
    for left_standing in ("", "s/0/", "s/0/1/decode"):
        begun: list[str] = []
        if left_standing:
            guard.begin(left_standing)
            begun.clear()
        chunks, _ = run(made, video(), guard)
        each = ["s/0/plan/decode", *(f"s/0/{chunk.id.clip}/decode" for chunk in chunks)]
        assert begun == ["s/0/", *(each if left_standing else [])]


def test_suspects_are_decoded_alone_and_only_their_own_death_rejects_them() -> None:
    """Clips 0 and 1 are suspects; only clip 1 kills its process. The order of the chunks stays."""
    guard = Strikes()
    for clip in (0, 1):
        for _ in range(MAX_STRIKES):
            guard.begin(f"s/0/{clip}/decode")
    rule = replace(ALL, num_frames=5)
    expected, _ = run(decoder(rule), video())
    chunks, (_, rejected) = run(decoder(rule, decode=dies_on_the_second), video(), guard)
    assert [chunk.id.clip for chunk in chunks] == [0, 2]
    np.testing.assert_array_equal(chunks[0].frames, expected[0].frames)
    assert (rejected.id.clip, rejected.rejection.reason, rejected.verdict) == (1, "decode_crashed", True)


def test_reading_is_timed_once_a_video_however_many_its_chunks(tmp_path: Path) -> None:
    made = decoder(replace(ALL, num_frames=5))
    chunks, receipts = run(made, replace(video(), read_seconds=2.0))
    assert len(chunks) > 1
    assert sum(receipt.read_seconds for receipt in receipts if isinstance(receipt, ClipsReceipt)) == 2
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(video().payload or b""))
    _, receipts = run(made, replace(video(), payload=None, uri=str(path)))
    assert sum(receipt.read_seconds for receipt in receipts if isinstance(receipt, ClipsReceipt)) > 0


@pytest.mark.parametrize(
    "rule",
    [
        {"clips": "all", "limit_hold": None},
        {"clips": "all"},
        {"clips": "every", "every": 0.25, "limit_hold": None, "max_clips": 100},
    ],
)
def test_decoding_holds_a_constant_number_of_clips_whatever_the_holds_and_overlaps(rule: dict[str, Any]) -> None:
    """40 frames, one of which stays for 300 s; with --every 0.25 up to 25 clips are under way at any time."""
    frames = [Fraction(i, 4) for i in range(20)]
    payload = make_video(times=[*frames, *(300 + at for at in frames)], container="matroska", width=32, height=32)
    made = decoder(ClipRule(num_frames=49, height=96, width=144, **rule))
    tracemalloc.start()
    try:
        num_chunks = sum(isinstance(record, Chunk) for record in made(replace(video(), payload=payload), Strikes()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_chunks >= 10
    assert peak < 4 * 49 * 96 * 144 * 3


def test_clips_that_share_frames_own_what_they_hand_out() -> None:
    """Clips that begin every frame equal the same clips decoded one by one, and no two are in the same memory."""
    rule = ClipRule(num_frames=9, height=64, width=96, clips="every", every=0.1)
    data = video().payload or b""
    specs = [clip.spec for clip in plan_clips(probe(data), measure(data), rule)]
    assert len(specs) == 10
    alone = [decode_clip(data, spec) for spec in specs]
    together = list(iter_clips(data, specs))
    for one, shared in zip(alone, together, strict=True):
        assert isinstance(shared, DecodedClip)
        np.testing.assert_array_equal(one.frames, shared.frames)
        assert (one.ticks, one.facts()) == (shared.ticks, shared.facts())
        assert shared.frames.flags.owndata
        assert shared.frames.flags.c_contiguous


def test_a_long_hold_is_one_rejection_among_the_clips() -> None:
    """And none where the Spec sets no limit."""
    payload = make_video(times=[0, 1, 2, 300, 301, 302], container="matroska")
    of = replace(video(), payload=payload)
    chunks, (announced, rejected) = run(decoder(replace(ALL, limit_hold=30.0)), of)
    assert announced.count == len(chunks) + 1
    assert (rejected.rejection.reason, rejected.rejection.start) == (
        "limit_exceeded",
        str(rejected.id.clip * Fraction(9, 8)),
    )
    assert sorted([*(chunk.id.clip for chunk in chunks), rejected.id.clip]) == list(range(announced.count))
    every, (announced,) = run(decoder(replace(ALL, limit_hold=None)), of)
    assert announced.count == len(every)
    frames = {chunk.facts.start: chunk.frames for chunk in every}
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.frames, frames[chunk.facts.start])
