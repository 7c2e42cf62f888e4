"""Which clips of a video become rows: the rule applied to videos of known headers and timestamps."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest

from pipeline.decode import DecodedClip, Timeline, VideoInfo, iter_clips, measure, probe
from pipeline.errors import ClipTooShortError, ConfigError, FilteredError, LimitExceededError, TruncatedVideoError
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule, Spec, diff
from pipeline.stages.clip_grid import PlannedClip, plan_clips
from tests.videos import cut, make_image, make_video, read_number

INFO = VideoInfo(
    container="mov,mp4,m4a,3gp,3g2,mj2",
    codec="h264",
    profile="High",
    width=1280,
    height=720,
    display_width=1280,
    display_height=720,
    sar=Fraction(1),
    rotation=0,
    flipped=False,
    pix_fmt="yuv420p",
    colorspace=1,
    color_range=1,
    color_trc=1,
    color_primaries=1,
    is_interlaced=False,
    is_image=False,
    size_bytes=1000,
    duration_from_header=None,
    num_frames_from_header=None,
    fps_from_header=None,
)


def timeline(num_frames: int, step_ms: int = 40, **changes: Any) -> Timeline:
    """Frames every `step_ms` milliseconds from 1 s on."""
    ticks = tuple(1000 + step_ms * i for i in range(num_frames))
    facts: dict[str, Any] = {
        "time_base": Fraction(1, 1000),
        "ticks": ticks,
        "keyframes": ticks[:1],
        "end": ticks[-1] + step_ms,
        "step": step_ms,
        "synthetic": False,
        "is_trusted": True,
        "is_truncated": False,
        "promised": Fraction(step_ms * num_frames, 1000),
    }
    return Timeline(**(facts | changes))


def plan(rule: ClipRule, num_frames: int = 250, **changes: Any) -> list[PlannedClip]:
    return plan_clips(INFO, timeline(num_frames), rule, **changes)


def starts(clips: list[PlannedClip]) -> list[Fraction]:
    return [clip.start for clip in clips]


def test_first_is_one_clip_at_the_start() -> None:
    (clip,) = plan(ClipRule(num_frames=17, height=128, width=192))
    assert (clip.clip, clip.start, clip.num_frames, clip.height, clip.width) == (0, 0, 17, 128, 192)
    assert (clip.spec.fps, clip.spec.num_frames, clip.spec.height, clip.spec.width) == (8, 17, 128, 192)


@pytest.mark.parametrize("fps", ["8", "30000/1001", "1/3", "25"])
@pytest.mark.parametrize("num_frames", [1, 5, 17, 49])
def test_all_clips_tile_the_video_and_the_last_partial_one_is_none(num_frames: int, fps: str) -> None:
    """Every grid time lies in the video, each exactly once, and what is left over is shorter than a clip."""
    duration, rate = Fraction(10), Fraction(fps)
    total = math.ceil(duration * rate)
    rule = ClipRule(num_frames=num_frames, fps=fps, clips="all")
    if total < num_frames:
        with pytest.raises(ClipTooShortError):
            plan(rule)
        return
    clips = plan(rule)
    times = [clip.spec.target(i) for clip in clips for i in range(num_frames)]
    assert times == [i / rate for i in range(len(times))]
    assert times[-1] < duration
    assert total - len(times) < num_frames
    assert [clip.clip for clip in clips] == list(range(len(clips)))


@pytest.mark.parametrize("num_frames", [1, 7, 250])
def test_all_native_clips_take_every_frame_once(num_frames: int) -> None:
    clips = plan(ClipRule(num_frames=num_frames, fps="native", clips="all"))
    assert starts(clips) == [Fraction(40 * num_frames * k, 1000) for k in range(250 // num_frames)]
    with pytest.raises(ClipTooShortError, match="250 frames fit, a clip has 251"):
        plan(ClipRule(num_frames=251, fps="native", clips="all"))


def test_every_starts_clips_at_fixed_times_and_they_may_overlap() -> None:
    clips = plan(ClipRule(num_frames=17, clips="every", every=1.5))
    assert starts(clips) == [Fraction(3 * k, 2) for k in range(6)]
    assert all(clip.spec.target(16) < 10 for clip in clips)
    native = plan(ClipRule(num_frames=17, fps="native", clips="every", every=1.5))
    assert starts(native) == [Fraction(40 * math.ceil(1500 * k / 40), 1000) for k in range(7)]


def test_native_clips_at_fixed_times_begin_once_after_a_gap() -> None:
    ticks = (0, 100, 200, 3000, 3100, 3200, 3300)
    found = replace(timeline(1), ticks=ticks, end=3400, promised=Fraction(34, 10))
    rule = ClipRule(num_frames=2, fps="native", clips="every", every=0.5)
    assert starts(plan_clips(INFO, found, rule)) == [0, 3]


def test_at_most_max_clips() -> None:
    assert len(plan(ClipRule(num_frames=1, clips="all", max_clips=3))) == 3
    assert len(plan(ClipRule(num_frames=1, clips="every", every=0.1, max_clips=2))) == 2


def test_the_grid_lies_within_start_and_end() -> None:
    rule = ClipRule(num_frames=4, clips="all")
    clips = plan(rule, start=Fraction(1, 3), end=Fraction(2))
    assert starts(clips) == [Fraction(1, 3), Fraction(1, 3) + Fraction(1, 2), Fraction(4, 3)]
    assert clips[-1].spec.target(3) < 2
    assert len(plan(rule, end=Fraction(99))) == len(plan(rule))
    assert starts(plan(replace(rule, clips="first"), start=Fraction(3))) == [3]
    with pytest.raises(ClipTooShortError, match="2 frames fit at 8 frames a second, a clip has 4"):
        plan(rule, start=Fraction(0), end=Fraction(1, 4))
    with pytest.raises(ClipTooShortError, match="holds no frame"):
        plan(rule, start=Fraction(11))
    with pytest.raises(ClipTooShortError, match="holds no frame"):
        plan(rule, start=Fraction(2), end=Fraction(2))


@pytest.mark.parametrize("fps", ["8", "native"])
def test_the_end_is_exclusive(fps: str) -> None:
    rule = ClipRule(num_frames=3, fps=fps, clips="all")
    step = Fraction(1, 8) if fps == "8" else Fraction(40, 1000)
    assert len(plan(rule, end=2 * step + Fraction(1, 1000))) == 1
    with pytest.raises(ClipTooShortError):
        plan(rule, end=2 * step)


def test_short_videos_are_refused_padded_or_trimmed() -> None:
    rule = ClipRule(num_frames=49)
    short = 120
    with pytest.raises(ClipTooShortError, match="39 frames fit at 8 frames a second, a clip has 49"):
        plan(rule, short)
    (padded,) = plan(replace(rule, short="pad"), short)
    assert (padded.num_frames, padded.spec.short) == (49, "pad_last")
    (trimmed,) = plan(replace(rule, short="trim"), short, accepted=lambda n: 1 + (n - 1) // 4 * 4)
    assert (trimmed.num_frames, trimmed.spec.short) == (37, "error")
    with pytest.raises(ClipTooShortError, match="fewer than the model takes"):
        plan(replace(rule, short="trim"), short, accepted=lambda n: None)
    (ranged,) = plan(replace(rule, short="trim"), 250, start=Fraction(0), end=Fraction(1))
    assert ranged.num_frames == 8


BUCKETS = ("49x480x720", "49x720x480", "49x512x512", "17x480x720")


@pytest.mark.parametrize(
    ("size", "num_frames", "shape"),
    [
        ((1280, 720), 250, (49, 480, 720)),
        ((720, 1280), 250, (49, 720, 480)),
        ((1000, 1000), 250, (49, 512, 512)),
        ((1, 5000), 250, (49, 720, 480)),
        ((1280, 720), 60, (17, 480, 720)),
    ],
)
def test_buckets_by_log_aspect_then_the_longest_that_fits(
    size: tuple[int, int], num_frames: int, shape: tuple[int, int, int]
) -> None:
    info = replace(INFO, display_width=size[0], display_height=size[1])
    (clip,) = plan_clips(info, timeline(num_frames), ClipRule(buckets=BUCKETS))
    assert (clip.num_frames, clip.height, clip.width) == shape
    assert (clip.spec.num_frames, clip.spec.height, clip.spec.width) == shape


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"min_size": 721}, "filtered_min_size"),
        ({"min_duration": 10.01}, "filtered_min_duration"),
        ({"max_duration": 9.99}, "filtered_max_duration"),
        ({"min_fps": 25.1}, "filtered_min_fps"),
    ],
)
def test_filters_refuse_the_video_with_their_reason(rule: dict[str, Any], reason: str) -> None:
    with pytest.raises(FilteredError) as refused:
        plan(ClipRule(**rule))
    assert refused.value.reason == reason


def test_filters_let_pass_what_is_exactly_at_their_bound() -> None:
    assert plan(ClipRule(min_size=720, min_duration=10.0, max_duration=10.0, min_fps=25.0))


@pytest.mark.parametrize("rule", [{"max_pixels": 1280 * 720 - 1}, {"limit_duration": 9.0}, {"max_bytes": 999}])
def test_limits(rule: dict[str, Any]) -> None:
    with pytest.raises(LimitExceededError):
        plan(ClipRule(**rule))


def test_what_decoding_decides_is_passed_on() -> None:
    rule = ClipRule(
        max_hold=0.1, min_motion=0.5, hdr="reject", on_error="skip", fit="pad", crop_x=0.0, max_pixels=1 << 23
    )
    (clip,) = plan(rule)
    spec = clip.spec
    assert (spec.max_hold, spec.min_motion, spec.hdr, spec.on_error) == (Fraction(1, 10), 0.5, "reject", "skip")
    assert (spec.fit, spec.crop, spec.max_pixels) == ("pad", (0.0, 0.5), 1 << 23)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_frames", 0),
        ("fps", "0"),
        ("fps", "fast"),
        ("fps", "1/0"),
        ("fps", "-8"),
        ("height", 481),
        ("width", 0),
        ("clips", "some"),
        ("max_clips", 0),
        ("buckets", ("49x480",)),
        ("buckets", ("0x480x720",)),
        ("buckets", ("49x480x721",)),
        ("fit", "squeeze"),
        ("crop_x", 1.5),
        ("short", "loop"),
        ("min_duration", -1.0),
        ("max_hold", math.inf),
        ("every", 2.5),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')}\\b") as refused:
        ClipRule(**{field: value})
    assert str(value if field != "buckets" else value[0]) in str(refused.value)


def test_images_become_clips_of_one_frame() -> None:
    data = make_image(width=96, height=128)
    info = probe(data)
    (clip,) = plan_clips(info, measure(data), ClipRule(buckets=BUCKETS, clips="all", min_duration=1.0))
    assert (clip.num_frames, clip.height, clip.width) == (1, 720, 480)
    (decoded,) = iter_clips(data, [clip.spec])
    assert isinstance(decoded, DecodedClip)
    with pytest.raises(ClipTooShortError, match="image"):
        plan_clips(info, None, ClipRule(images="reject"))


@pytest.mark.parametrize(
    ("rule", "needs"),
    [
        ({}, False),
        ({"buckets": ("17x64x64", "17x128x64")}, False),
        ({"clips": "all"}, True),
        ({"short": "pad"}, True),
        ({"min_fps": 1.0}, True),
        ({"buckets": ("17x64x64", "49x64x64")}, True),
    ],
)
def test_a_rule_says_whether_it_needs_timestamps(rule: dict[str, Any], needs: bool) -> None:
    assert ClipRule(**rule).needs_timeline is needs
    if not needs:
        assert len(plan_clips(INFO, None, ClipRule(**rule))) == 1


@pytest.mark.parametrize("fps", ["8", "native", "30000/1001"])
def test_planned_clips_decode_and_follow_each_other(fps: str) -> None:
    data = make_video(times=[Fraction(i * i + 40 * i, 1000) for i in range(60)], time_base=Fraction(1, 1000))
    clips = plan_clips(probe(data), measure(data), ClipRule(num_frames=5, fps=fps, height=96, width=128, clips="all"))
    results = list(iter_clips(data, [clip.spec for clip in clips]))
    assert all(isinstance(result, DecodedClip) for result in results)
    shown = [read_number(f) for result in results if isinstance(result, DecodedClip) for f in result.frames]
    assert all(a <= b for a, b in pairwise(shown))
    if fps == "native":
        assert shown == list(range(60))


@pytest.mark.parametrize("fps", ["8", "native"])
def test_the_missing_part_of_a_truncated_file_is_refused_clip_by_clip(fps: str) -> None:
    """As many clips as the file claims to have; those before the cut come out."""
    whole = make_video(num_frames=240, container="matroska")
    rule = ClipRule(num_frames=9, fps=fps, height=96, width=128, clips="all")
    data = cut(whole, 0.5)
    clips = plan_clips(probe(data), measure(data), rule)
    promised = len(plan_clips(probe(whole), measure(whole), rule))
    assert promised - 1 <= len(clips) <= promised
    results = list(iter_clips(data, [clip.spec for clip in clips]))
    num_sound = sum(isinstance(result, DecodedClip) for result in results)
    assert 0.3 * promised < num_sound < 0.6 * promised
    assert all(isinstance(result, TruncatedVideoError) for result in results[num_sound:])


def test_native_clips_of_what_a_truncated_file_lacks() -> None:
    """10 frames of 40 ms, and 2 s promised: 40 more. A range may lie wholly in what is missing."""
    found = timeline(10, is_truncated=True, promised=Fraction(2))
    rule = ClipRule(num_frames=8, fps="native", clips="all")
    step = Fraction(40, 1000)
    assert starts(plan_clips(INFO, found, rule)) == [8 * i * step for i in range(6)]
    assert starts(plan_clips(INFO, found, rule, start=Fraction(1), end=Fraction(3, 2))) == [1]
    every = ClipRule(num_frames=8, fps="native", clips="every", every=0.5)
    assert starts(plan_clips(INFO, found, every)) == [0, 13 * step, 1, 38 * step]


def test_a_file_that_promises_a_day_of_milliseconds_is_refused_and_needs_no_memory() -> None:
    found = timeline(10, step_ms=1, is_truncated=True, promised=Fraction(86_400))
    tracemalloc.start()
    assert len(plan_clips(INFO, found, ClipRule(num_frames=9, fps="native"))) == 1
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    rule = ClipRule(num_frames=9, fps="native", clips="all")
    with pytest.raises(LimitExceededError, match="more than 200000 clips"):
        plan_clips(INFO, found, replace(rule, limit_hold=None))
    *clips, rest = plan_clips(INFO, found, rule)
    assert len(clips) == math.ceil(60_000 / 9), "the first minute of what is missing, clip by clip"
    assert all(clip.refused is None for clip in clips)
    assert isinstance(rest.refused, TruncatedVideoError)


HOLDS = Fraction(1), Fraction(3), Fraction(90), Fraction(91), Fraction(400), Fraction(420)
"""Seconds at which a new picture comes."""


@pytest.mark.parametrize("every", [None, 0.4, 2.0, 7.0])
@pytest.mark.parametrize("limit", [0.5, 5.0, 60.0, 400.0])
def test_a_stretch_of_one_picture_is_refused_as_one_beyond_the_limit(limit: float, every: float | None) -> None:
    """What is left out of the grid are exactly the clips that show one picture alone and have it beyond the limit."""
    ticks = tuple(int(1000 * at) for at in (0, *HOLDS))
    found = replace(timeline(1), ticks=ticks, end=422_000, promised=Fraction(422))
    rule = ClipRule(num_frames=9, clips="every" if every else "all", every=every, limit_hold=None)
    grid = plan_clips(INFO, found, rule)
    clips = plan_clips(INFO, found, replace(rule, limit_hold=limit))
    assert [clip.clip for clip in clips] == list(range(len(clips)))

    def picture(at: Fraction) -> int:
        return sum(hold <= at for hold in HOLDS)

    wanted = []
    for clip in grid:
        first, last = picture(clip.start), picture(clip.spec.target(8))
        is_left_out = first == last and clip.spec.target(8) - Fraction(found.ticks[last], 1000) > Fraction(str(limit))
        if not is_left_out:
            wanted.append((clip.start, False))
        elif not wanted or not wanted[-1][1] or wanted[-1][2] != first:
            wanted.append((clip.start, True, first))
    assert [(clip.start, clip.refused is not None) for clip in clips] == [each[:2] for each in wanted]
    assert all(isinstance(clip.refused, LimitExceededError) for clip in clips if clip.refused)
    assert sum(clip.refused is not None for clip in clips) <= len(HOLDS) + 1


@pytest.mark.parametrize("fps", ["8", "native"])
def test_a_refused_stretch_says_which_it_is(fps: str) -> None:
    found = timeline(10, is_truncated=True, promised=Fraction(7200))
    *clips, rest = plan_clips(INFO, found, ClipRule(num_frames=9, fps=fps, clips="all"))
    assert all(clip.refused is None for clip in clips)
    assert isinstance(rest.refused, TruncatedVideoError)
    assert "breaks off at 0.360 s of 7200.000 s" in str(rest.refused)
    if fps == "8":
        whole = timeline(10, end=7_201_000, promised=Fraction(7200))
        *_, rest = plan_clips(INFO, whole, ClipRule(num_frames=9, clips="all"))
        assert isinstance(rest.refused, LimitExceededError)
        assert "from 0.360 s to 7200.000 s; the 6347 clips more than limit_hold=60 s" in str(rest.refused)
        assert len(plan_clips(INFO, whole, ClipRule(num_frames=9, clips="all", max_clips=3))) == 3


def test_native_frames_are_no_stretch_however_long_each_is_shown() -> None:
    found = replace(timeline(1), ticks=tuple(range(0, 9_000_000, 90_000)), end=9_000_000, promised=Fraction(9000))
    clips = plan_clips(INFO, found, ClipRule(num_frames=10, fps="native", clips="all"))
    assert (len(clips), any(clip.refused for clip in clips)) == (10, False)


@pytest.mark.parametrize("said", ["ffmpeg", "auto"])
def test_an_output_that_says_a_matrix_in_the_words_of_earlier_versions_is_gone_on_with(said: str) -> None:
    """What the words mean is a law of tests/decode/test_colour.py."""
    stored = Spec(vae={}, clip=ClipRule(untagged_colorspace=said), latent=LatentRule()).to_json()  # type: ignore[arg-type]
    read = Spec.from_json(stored)
    assert diff(read.to_json(), stored) == []
    (clip,) = plan(read.clip)
    assert clip.spec.untagged_colorspace == said
    assert diff(Spec(vae={}, clip=ClipRule(), latent=LatentRule()).to_json(), stored) == [
        ("clip.untagged_colorspace", "by_size", said)
    ]
