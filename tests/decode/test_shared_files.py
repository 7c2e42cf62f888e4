"""Every real file is decoded in full, or refused for the reason that its manifest entry calls for."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest

from pipeline.decode import DecodedClip, DecodeSpec, Timeline, decode_clip, iter_clips, measure, probe, seeking
from pipeline.errors import CorruptVideoError, VideoError
from tests.decode.shared_set import (
    DAMAGED,
    HEAVY,
    MANY_PIXELS,
    NO_SEEKS,
    REFUSED,
    linear,
    manifest,
    names,
    read,
    same,
    small,
)

ALL = [pytest.param(name, marks=[pytest.mark.slow] if name in HEAVY else []) for name in names()]
DECODABLE = [p for p in ALL if p.values[0] not in REFUSED]
TRUNCATED = "libwebm__block_ends_beyond_cluster.mkv"


@pytest.mark.parametrize("name", ALL)
def test_every_file_is_decoded_in_full_or_refused_with_reason(shared: Path, name: str) -> None:
    data = read(shared, name)
    if name in REFUSED:
        with pytest.raises(VideoError) as refused:
            decode_clip(data, DecodeSpec(num_frames=1, fps=None, height=64, width=96))
        assert refused.value.reason == REFUSED[name]
        return
    entry = manifest(shared)[name]
    counted = entry.get("frames_skipping_errors") or entry["frames_decoded"]
    wanted = 1 if name == TRUNCATED else counted + 1000
    clip = decode_clip(data, small(wanted, None, short="truncate", on_error="skip"))
    assert clip.stats.frames_decoded >= counted
    assert len(clip.frames) >= counted - entry["frames_flagged_corrupt"]
    assert all(a < b for a, b in zip(clip.ticks, clip.ticks[1:], strict=False))


@pytest.mark.parametrize("name", DECODABLE)
def test_headers_agree_with_the_manifest(shared: Path, name: str) -> None:
    entry = manifest(shared)[name]
    info = probe(shared / "videos" / name, max_pixels=MANY_PIXELS)
    if name != "torchcodec__nasa_13013.mp4":  # the manifest describes its first stream, which is not its best
        assert (info.width, info.height) == (entry["width"], entry["height"])
        assert info.sar == Fraction(entry["sample_aspect_ratio"] or 1)
    else:
        assert (info.width, info.height) == (480, 270)
    turns = {angle % 360 for angle in entry["rotation"]}
    if name == "androidx__sample_rotate_and_reflect.mp4":
        assert (info.rotation, info.flipped) == (90, True)
    else:
        assert ({info.rotation}, info.flipped) == (turns, False)


@pytest.mark.parametrize("name", DECODABLE)
def test_timestamps_from_packets_are_those_of_decoding(shared: Path, name: str) -> None:
    """Where a Timeline calls itself trusted it foretells every frame; elsewhere at least their number, nearly."""
    if name in DAMAGED or name == TRUNCATED:
        pytest.skip("not all of its packets decode")
    data = read(shared, name)
    timeline = measure(data)
    clip = decode_clip(data, small(timeline.num_frames + 9, None, short="truncate", on_error="skip"))
    flagged = manifest(shared)[name]["frames_flagged_corrupt"]
    if flagged == 0:
        assert clip.ticks == timeline.ticks
    else:
        assert set(clip.ticks) <= set(timeline.ticks)


def _specs(timeline: Timeline, seed: str, num_starts: int) -> list[DecodeSpec]:
    rng = random.Random(seed)
    starts = sorted(timeline.duration * Fraction(rng.randrange(1000), 1000) for _ in range(num_starts))
    return [small(2, fps, start=start) for start in starts for fps in (None, Fraction(8))]


@pytest.mark.parametrize(
    ("name", "num_starts"),
    [
        pytest.param(p.values[0], n, marks=[pytest.mark.slow] if n > 3 or p.values[0] in NO_SEEKS else p.marks)
        for p in DECODABLE
        for n in (3, 12)
    ],
)
def test_seek_equals_linear_and_one_pass_equals_clip_by_clip(
    shared: Path, name: str, num_starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeking, "_MIN_SEEK_SECONDS", Fraction(1, 5))
    data = read(shared, name)
    specs = _specs(measure(data), name, num_starts)
    expected = linear(data, specs)
    assert all(clip.stats.seeks == 0 for clip in expected if isinstance(clip, DecodedClip))
    together = list(iter_clips(data, specs))
    alone = [next(iter_clips(data, [spec])) for spec in specs]
    for one, two, three in zip(expected, together, alone, strict=True):
        assert same(one, two)
        assert same(one, three)


@pytest.mark.parametrize("name", ["mdn__crystal.mp4", "androidx__sample.avi", "exoplayer__video_desks.3gp"])
def test_seeking_happens_at_all(shared: Path, name: str) -> None:
    data = read(shared, name)
    timeline = measure(data)
    clip = decode_clip(data, small(1, None, start=timeline.time(timeline.num_frames - 1)))
    assert clip.stats.seeks > 0
    assert clip.stats.frames_decoded < timeline.num_frames // 2


@pytest.mark.parametrize("name", sorted(DAMAGED))
def test_damage_inside_a_clip_refuses_it_and_no_other(shared: Path, name: str) -> None:
    data = read(shared, name)
    end = measure(data).duration
    before, across = small(5, None), small(int(end * 10), 10)
    good, bad = iter_clips(data, [before, across])
    assert isinstance(good, DecodedClip)
    assert isinstance(bad, CorruptVideoError)
    assert len(decode_clip(data, replace(across, on_error="skip")).frames) == across.num_frames


@pytest.mark.parametrize("name", [p for p in DECODABLE if p.values[0] not in DAMAGED | {TRUNCATED}])
def test_frames_are_those_on_screen_by_the_packets_timestamps(shared: Path, name: str) -> None:
    """An oracle of its own: PTS from PyAV's demuxer, sorted, and for each t the last one at or before it."""
    if name.endswith((".avi", ".h264", ".webp", ".mts")):
        pytest.skip("its packets carry no presentation times of frames")
    with av.open(str(shared / "videos" / name), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard and p.size]
        base = stream.time_base
    pts = sorted(p.pts for p in packets)
    times = [(p - pts[0]) * base for p in pts]
    if len(times) < 2:
        pytest.skip("a single frame")
    n, fps = 5, 4 / times[-1]
    start = times[-1] / 7
    n = sum(start + i / fps <= times[-1] for i in range(n))
    clip = decode_clip(shared / "videos" / name, small(n, fps, start=start, on_error="skip"))
    want = [max(t for t in times if t <= start + i / fps) for i in range(n)]
    if "vp92" in name:  # packets that show nothing carry timestamps too
        assert all(t - s <= Fraction(1, 10) for s, t in zip(clip.timestamps, want, strict=True))
    else:
        assert list(clip.timestamps) == want


@pytest.mark.parametrize("name", ["mde__sample_mpeg2.m2v", "streamio__weird_aspect.small.mpg"])
def test_frames_that_the_decoder_flags_are_never_used_silently(shared: Path, name: str) -> None:
    """Each has one, near its end, where the file was cut."""
    data = read(shared, name)
    counted = manifest(shared)[name]["frames_decoded"]
    with pytest.raises(CorruptVideoError, match="flags the frame"):
        decode_clip(data, small(counted, None))
    passed_over = decode_clip(data, small(counted, None, on_error="skip", short="truncate"))
    assert len(passed_over.frames) == counted - 1
    assert len(decode_clip(data, small(counted - 3, None)).frames) == counted - 3
