"""A recording that begins anywhere is a video from its first keyframe on; damage reaches what is predicted from it.

An open GOP's keyframe has frames that are decoded after it and shown before it. They are predicted from the GOP before
as well, and are lost with it: no later frame is.
"""

from __future__ import annotations

import io
import subprocess
from fractions import Fraction
from functools import cache
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, iter_clips, measure, seeking
from pipeline.decode.leading import Lead
from pipeline.errors import CorruptVideoError, NoFramesError, UnreadableError, VideoError
from tests.decode.shared_set import linear, same
from tests.decode.test_disposable import spoil
from tests.videos import make_video, read_number

NTSC = Fraction(30_000, 1001)
NUM_FRAMES, GOP = 72, 12
PACKET = 188
"""Bytes of a packet of an MPEG transport stream."""
X26 = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:bframes=3:b-adapt=0"
STREAMS: dict[str, dict[str, Any]] = {
    "hevc": {"codec": "libx265", "codec_options": {"x265-params": f"{X26}:log-level=none"}},
    "hevc, leading frames decodable": {
        "codec": "libx265",
        "codec_options": {"x265-params": f"{X26}:open-gop=0:radl=2:log-level=none"},
    },
    "h264": {"codec_options": {"x264-params": f"{X26}:open-gop=1:threads=1"}},
    "mpeg2": {"codec": "mpeg2video", "codec_options": {"b": "2M", "sc_threshold": "1000000000"}, "bframes": 2},
}
NUM_LED = {"hevc, leading frames decodable": 2}
"""Frames that lead each keyframe and can be decoded from there."""


@cache
def recording(name: str, container: str = "mpegts") -> bytes:
    settings = {"fps": NTSC, "gop": GOP, "time_base": 1 / NTSC, **STREAMS[name]}
    return make_video(num_frames=NUM_FRAMES, container=container, **settings)


def spec(num_frames: int, **changes: Any) -> DecodeSpec:
    return DecodeSpec(num_frames=num_frames, **({"fps": None, "height": 96, "width": 128} | changes))


def whole(data: bytes) -> DecodedClip:
    return decode_clip(data, spec(NUM_FRAMES + 1, short="truncate"))


def cuts(data: bytes, number: int) -> list[bytes]:
    """What is left of the file at so many places, evenly spaced, each the beginning of a packet."""
    packets = len(data) // PACKET
    return [data[packets * k // (number + 1) * PACKET :] for k in range(1, number + 1)]


@pytest.mark.parametrize(("name", "number"), [("hevc", 39), *((name, 7) for name in STREAMS if name != "hevc")])
def test_every_frame_from_the_first_keyframe_on_is_as_in_the_uncut_file(name: str, number: int) -> None:
    uncut = whole(recording(name))
    assert [read_number(frame) for frame in uncut.frames] == list(range(NUM_FRAMES))
    num_whole = 0
    for data in cuts(recording(name), number):
        try:
            clip = whole(data)
        except (NoFramesError, UnreadableError):  # the last GOP without its keyframe
            continue
        num_whole += 1
        first = read_number(clip.frames[0])
        assert (first + NUM_LED.get(name, 0)) % GOP == 0
        assert np.array_equal(clip.frames, uncut.frames[first:])
        assert clip.ticks == uncut.ticks[first:] == measure(data).ticks
    assert num_whole >= number * 7 // 10


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMS)
def test_the_frames_are_those_of_the_ffmpeg_program(name: str) -> None:
    for data in cuts(recording(name), 39):
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", "-", "-fps_mode", "passthrough"]
        raw = subprocess.run(
            [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], input=data, capture_output=True, check=False
        ).stdout
        theirs = [read_number(frame) for frame in np.frombuffer(raw, np.uint8).reshape(-1, 96, 128, 3)]
        try:
            ours = [read_number(frame) for frame in whole(data).frames]
        except (NoFramesError, UnreadableError):
            ours = []
        assert ours == theirs


@pytest.mark.parametrize("name", STREAMS)
def test_a_cut_recording_gives_the_same_clips_with_seeks_and_without(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(seeking, "_MIN_SEEK_SECONDS", Fraction(1, 5))
    for data in cuts(recording(name), 5)[:2]:
        specs = [spec(3, fps=fps, start=Fraction(k, 2)) for k in range(4) for fps in (None, Fraction(8))]
        expected = linear(data, specs)
        assert all(map(same, expected, iter_clips(data, specs)))
        alone = [next(iter_clips(data, [one])) for one in specs]
        assert all(map(same, expected, alone))
        assert sum(clip.stats.seeks for clip in alone if isinstance(clip, DecodedClip)) > 0


@pytest.mark.parametrize("container", ["mpegts", "mp4", "matroska"])
def test_what_leads_an_h264_keyframe_is_lost_unless_nothing_before_it_is_referred_to(container: str) -> None:
    """Some cameras begin a recording with an IDR picture that is shown after the pictures that follow it."""
    with av.open(io.BytesIO(recording("h264", container))) as opened:
        stream = opened.streams.video[0]
        packets = [packet for packet in opened.demux(stream) if packet.size]
        idr, recovery_point = [packet for packet in packets if packet.is_keyframe][:2]
        later = packets[packets.index(recovery_point) + 1]
        assert not Lead(idr, idr.pts, stream).is_lost(later, idr.pts - 1)
        assert Lead(recovery_point, recovery_point.pts, stream).is_lost(later, recovery_point.pts - 1)
        assert not Lead(recovery_point, recovery_point.pts, stream).is_lost(later, recovery_point.pts + 1)


def test_a_keyframe_is_waited_for_however_long() -> None:
    """With x265's default of 250 frames a GOP, a cut may leave as many that cannot be decoded."""
    settings = {"x265-params": "keyint=125:min-keyint=125:scenecut=0:log-level=none", "preset": "ultrafast"}
    data = make_video(num_frames=130, container="mpegts", codec="libx265", codec_options=settings)
    clip = decode_clip(data[10 * PACKET :], spec(31, short="truncate"))
    assert clip.stats.errors > 100
    assert [read_number(frame) for frame in clip.frames] == list(range(125, 130))


def one_by_one(data: bytes, number: int) -> list[int | VideoError]:
    """The number of each frame, or why it can't be had."""
    results = iter_clips(data, [spec(1, start=k / NTSC) for k in range(number)])
    return [read_number(clip.frames[0]) if isinstance(clip, DecodedClip) else clip for clip in results]


def test_the_loss_of_a_leading_frame_costs_no_frame_after_the_keyframe() -> None:
    data = recording("hevc", "mp4")
    packets = stored(data)
    key = next(i for i, packet in enumerate(packets) if packet.is_keyframe and i)
    leading = [packet.pts for packet in packets[key:] if packet.pts < packets[key].pts]
    lost = packets[key + 1]
    assert lost.pts in leading
    shown = sorted(packet.pts for packet in packets)
    found = one_by_one(spoil(data, lost), NUM_FRAMES)
    for number, (ticks, result) in enumerate(zip(shown, found, strict=True)):
        if ticks == lost.pts:
            assert isinstance(result, CorruptVideoError)
        elif ticks not in leading:  # those may be predicted from one another
            assert result == number


def test_the_loss_of_a_frame_costs_the_next_keyframe_what_leads_it() -> None:
    """Its leading frames are predicted from the GOP before, too."""
    data = recording("hevc", "mp4")
    packets = stored(data)
    key = next(i for i, packet in enumerate(packets) if packet.is_keyframe and i)
    shown = sorted(packet.pts for packet in packets)
    lost = max(packets[: key - 4], key=lambda packet: int(packet.pts))
    found = one_by_one(spoil(data, lost), NUM_FRAMES)
    first, last = shown.index(lost.pts), shown.index(packets[key].pts)
    assert first < last - 3
    assert all(isinstance(result, CorruptVideoError) for result in found[first:last])
    assert found[last:] == list(range(last, NUM_FRAMES))


def test_a_gradual_refresh_does_not_undo_damage_at_its_beginning() -> None:
    """H.264 may begin anew without a keyframe, column by column: until all are through, old damage is seen."""
    settings = {"x264-params": f"keyint={GOP}:intra-refresh=1:scenecut=0:bframes=0:threads=1"}
    data = make_video(num_frames=90, codec_options=settings)
    sound = decode_clip(data, spec(90)).frames
    broken = spoil(data, stored(data)[50])
    results = list(iter_clips(broken, [spec(1, start=Fraction(k, 24)) for k in range(90)]))
    for frame, result in zip(sound, results, strict=True):
        if isinstance(result, DecodedClip):
            assert np.array_equal(result.frames[0], frame)
        else:
            assert isinstance(result, CorruptVideoError)
    assert all(isinstance(result, DecodedClip) for result in results[:50])


def stored(data: bytes) -> list[Any]:
    """The packets of the video."""
    with av.open(io.BytesIO(data)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]
