"""Bytes, paths and file objects give the same; a fault of the storage is never taken for content."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import DecodedClip, DecodeSpec, decode_clip, iter_clips, measure, probe
from tests.videos import make_video


def spec(num_frames: int) -> DecodeSpec:
    return DecodeSpec(num_frames=num_frames, fps=None, height=96, width=128)


class FaultyFile(io.BytesIO):
    """A file object whose storage fails after so many reads."""

    def __init__(self, data: bytes, reads: int) -> None:
        super().__init__(data)
        self.reads = reads

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            raise ConnectionResetError("the storage went away")
        return super().read(size)


def test_a_fault_of_the_storage_is_never_a_rejection() -> None:
    """Wherever it strikes: the storage's own exception comes out, and no clip made of what was read before."""
    data = make_video(num_frames=48, width=320, height=240, container="matroska", codec_options={"crf": "0"})
    whole = decode_clip(data, spec(48)).frames
    outcomes = set()
    for reads in range(40):
        try:
            (clip,) = iter_clips(FaultyFile(data, reads), [spec(48)])
        except ConnectionResetError:
            outcomes.add("fault")
        else:
            assert isinstance(clip, DecodedClip)
            assert (clip.frames == whole).all()
            outcomes.add("whole")
        for look in (probe, measure):
            try:
                look(FaultyFile(data, reads))
            except ConnectionResetError:
                outcomes.add("fault")
    assert outcomes == {"fault", "whole"}


class CutFile(io.BytesIO):
    """A file object whose storage gives the bytes before `end` and fails beyond."""

    def __init__(self, data: bytes, end: int) -> None:
        super().__init__(data)
        self.end = end

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        if at >= self.end:
            raise ConnectionResetError("the storage went away")
        return super().read(min(size if size and size > 0 else self.end, self.end - at))


def test_a_packet_that_a_fault_cut_short_is_not_decoded() -> None:
    """A native clip is complete with its last packet: whatever of it was read, the fault comes first."""
    noise = list(np.random.default_rng(1).integers(0, 256, (6, 96, 128, 3), np.uint8))
    data = make_video(images=noise, num_frames=6, container="matroska", codec="mjpeg", pix_fmt="yuvj420p")
    whole = decode_clip(data, spec(6)).frames
    outcomes = set()
    for end in range(2000, len(data), 701):
        for num_frames in range(1, 7):
            try:
                (clip,) = iter_clips(CutFile(data, end), [spec(num_frames)])
            except ConnectionResetError:
                outcomes.add("fault")
            else:
                assert isinstance(clip, DecodedClip)
                assert (clip.frames == whole[:num_frames]).all()
                outcomes.add("whole")
    assert outcomes == {"fault", "whole"}


def test_a_missing_path_is_the_storages_business() -> None:
    with pytest.raises(FileNotFoundError):
        probe("/nonexistent/video.mp4")


def test_sources_of_every_kind_give_the_same(tmp_path: Path) -> None:
    data = make_video(num_frames=24)
    path = tmp_path / "a name with spaces:and%colons.mp4"
    path.write_bytes(data)
    want = decode_clip(data, spec(24)).frames
    with path.open("rb") as file:
        for src in (memoryview(data), bytearray(data), path, str(path), file, io.BytesIO(data)):
            assert (decode_clip(src, spec(24)).frames == want).all()
        assert not file.closed
