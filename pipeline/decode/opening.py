"""Open bytes, a path or a file object as a container, and choose its video stream, with these safety rules:

* FFmpeg never opens a file or a URL by itself: it reads through `Feed`. So playlists and references inside the content
  have no effect, and a storage fault is recognised, whatever error FFmpeg makes of it.
* Decoding uses one thread (`SLICE`, 1), set before the first decode: PyAV's default uses every core of the machine and
  leaks threads of unreferenced containers.
* Every FFmpeg error counts as bad content, also "cannot allocate memory": FFmpeg raises it for absurd sizes in headers.
  A machine without memory kills the process, or raises Python's MemoryError, which is not caught.
* FFmpeg's log level is never set: with a Python log callback, a decoder error in a worker thread can deadlock on the
  GIL (seen with two of our files; PyAV issues 751, 909, 2276).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.codec.context import Flags
from av.stream import Discard, Disposition

from pipeline.decode.bitstream.edits import check_edits
from pipeline.errors import (
    CorruptVideoError,
    LimitExceededError,
    NoVideoStreamError,
    UnreadableError,
    UnsupportedCodecError,
)

Source = bytes | bytearray | memoryview | str | Path | BinaryIO
"""An encoded file: its bytes, a local path, or a seekable binary file object (read from 0, never closed)."""

_SILENT_ABOUT_LOSS = {"hevc", "vvc"}
"""Decoders that skip a damaged NAL unit and output the frame with a hole and without a flag, unless set to raise.
The decoders of H.264 and the MPEGs flag concealed damage. In VP8, VP9 and AV1 a flipped bit usually gives another valid
stream, so damage cannot be detected."""
_AV_OPTIONS = {"protocol_whitelist": "none", "probesize": "5000000"}
_NO_TRIAL = {"skip_frame": "all"}
"""Options for the trial decode while FFmpeg opens a file: some frames, 7 of H.264, which takes 18 ms at 720p and 42 ms
at 1080p. It finds how far a stream reorders its frames, if no header says so."""


class Feed:
    """One source, read by any number of containers. It keeps the first exception of the storage."""

    def __init__(self, src: Source) -> None:
        self.fault: Exception | None = None
        self._file: BinaryIO | None = None
        self._owned: BinaryIO | None = None
        if isinstance(src, (bytes, bytearray, memoryview)):
            self._view = memoryview(src).cast("B")
        elif isinstance(src, (str, Path)):
            self._file = self._owned = Path(src).open("rb")  # noqa: SIM115
        else:
            self._file = src
        self.size = self._file.seek(0, io.SEEK_END) if self._file is not None else len(self._view)

    def close(self) -> None:
        """Close the file if this feed opened it."""
        if self._owned is not None:
            self._owned.close()

    def read_at(self, offset: int, size: int) -> bytes:
        """Return bytes [offset, offset + size), fewer only at the end of the source."""
        if self._file is None:
            return bytes(self._view[offset : offset + size])
        self._file.seek(offset)
        return bytes(self._file.read(size))

    def check(self) -> None:
        """Raise the exception of the storage, if there was one: to libav it looked like the end of the file."""
        if self.fault is not None:
            raise self.fault


class _Cursor:
    """The file object of one container: its own position in a shared feed, and no `close`."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._offset = 0

    def read(self, size: int) -> bytes:
        try:
            data = self._feed.read_at(self._offset, size)
        except Exception as error:  # kept for `check`, because libav may lose it
            self._feed.fault = self._feed.fault or error
            data = b""
        self._offset += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._feed.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._offset = base + offset
        return self._offset

    def tell(self) -> int:
        return self._offset


@contextmanager
def open_feed(src: Source) -> Iterator[Feed]:
    """Yield the feed of `src`. It is closed at the end if `src` is a path."""
    feed = Feed(src)
    try:
        yield feed
    finally:
        feed.close()


@contextmanager
def open_container(feed: Feed, *, with_trial: bool = True) -> Iterator[Any]:
    """Yield an open container. It is closed at the end, because threads and descriptors would remain.

    Without a trial decode, some properties of the streams are unknown, and frames may come in the wrong order. So it is
    skipped for MP4 only, which gives the decoding time of packets; otherwise FFmpeg needs the trial to guess it.

    Raises:
        UnreadableError: FFmpeg cannot read the content.
        UnsupportedCodecError: an animated WebP.
        CorruptVideoError: replaces an FFmpeg error in the body of the `with`.
        OSError: any error of the storage.
    """
    with _open(feed, _AV_OPTIONS if with_trial or not _is_mp4(feed) else _AV_OPTIONS | _NO_TRIAL) as container:
        feed.check()
        if _is_animated_webp(feed.read_at(0, 21)):
            raise UnsupportedCodecError("an animated WebP, which FFmpeg decodes from release 9 on only")
        try:
            yield container
        except av.FFmpegError as error:
            feed.check()
            raise CorruptVideoError(describe(error)) from None


def _is_animated_webp(head: bytes) -> bool:
    return len(head) > 20 and (head[:4], head[8:16]) == (b"RIFF", b"WEBPVP8X") and bool(head[20] & 2)


def _is_mp4(feed: Feed) -> bool:
    return _Cursor(feed).read(8)[4:] == b"ftyp"


def _open(feed: Feed, options: dict[str, str]) -> Any:
    if feed.size == 0:
        raise UnreadableError("the file is empty")
    try:
        try:
            return av.open(_Cursor(feed), "r", options=options, metadata_errors="replace")
        except TypeError:  # PyAV 19 has no such argument and never raises on metadata
            return av.open(_Cursor(feed), "r", options=options)
    except (av.FFmpegError, UnicodeDecodeError, ValueError) as error:
        feed.check()
        raise UnreadableError(f"cannot be opened as a video: {describe(error)}") from None


def choose_stream(container: Any, feed: Feed, max_pixels: int | None = None, *, any_order: bool = False) -> Any:
    """Return the video stream that a player would show, set up for decoding on one thread.

    It is FFmpeg's choice (`best`), or the largest other stream if that is cover art. If an H.264 stream does not state
    how far it reorders frames, the decoder assumes no reordering, corrects itself later, and by then has dropped late
    frames. With `any_order` it assumes the most reordering that the specification allows.

    Raises:
        NoVideoStreamError, UnsupportedCodecError, UnsupportedEditsError
        LimitExceededError: the header gives more than `max_pixels` per frame.
    """
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    whole = [s for s in moving if not s.disposition & Disposition.dependent]
    if len(whole) < len(moving):
        if not any(s.disposition & Disposition.default for s in whole):
            raise UnsupportedCodecError("a picture made of tiles, each a stream of its own (HEIF grid)")
        moving = whole
    if not moving:
        kinds = sorted({s.type for s in container.streams})
        raise NoVideoStreamError(f"no video stream; the container has {kinds or 'no streams'}")
    best = container.streams.best("video")
    stream = best if any(s.index == best.index for s in moving) else max(moving, key=lambda s: (_pixels(s), -s.index))
    if stream.codec_context is None:
        raise UnsupportedCodecError("no decoder for the video stream")
    if "mov" in container.format.name.split(","):
        check_edits(feed, stream)
    if max_pixels is not None and _pixels(stream) > max_pixels:
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        raise LimitExceededError(f"frames of {size} exceed max_pixels={max_pixels}")
    stream.thread_type = "SLICE"
    stream.codec_context.thread_count = 1
    options = {} if max_pixels is None else {"max_pixels": str(max_pixels)}
    if stream.codec_context.name in _SILENT_ABOUT_LOSS:
        options["err_detect"] = "explode"
    if any_order and stream.codec_context.name == "h264":
        options["strict"] = "1"
    stream.codec_context.flags |= Flags.unaligned  # or columns cropped on the left remain (seen: 4 to 6)
    stream.codec_context.options = options
    return stream


def discard_others(container: Any, stream: Any) -> None:
    """Make the demuxer skip the data of all other streams."""
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all


def describe(error: Exception) -> str:
    """Return the error's class and message, without PyAV's log excerpt."""
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}"


def _pixels(stream: Any) -> int:
    context = stream.codec_context
    return 0 if context is None else int(context.width or 0) * int(context.height or 0)
