"""Every error that latentmill raises on purpose.

    LatentmillError
    |- ConfigError            a setting is wrong: raised before Ray starts, names field, value and what is allowed
    |- EncoderError           no encoder can start; the run ends, committed shards stay
    |- StorageError           the storage failed, and so did every retry; the shard stays uncommitted
    |  |- NotFoundError       the storage answers "no such object"; only this storage error may become a Rejection
    |  |- AccessError         the credentials are missing, wrong, or do not suffice
    |  |- ChangedError        the object differs from the one in the plan (size or ETag)
    |  +- TransientError      throttled, timed out, cut off; raised when the retries ran out
    |- VideoError             bad content; becomes a Rejection with `reason`
       |- UnreadableError     not a video that FFmpeg can open
       |- NoVideoStreamError  the container has no video stream
       |- UnsupportedCodecError  FFmpeg has no decoder for the video stream
       |- UnsupportedEditsError  FFmpeg would give frames wrong times for this MP4 edit list
       |- NoFramesError       the file opens, but has no frame
       |- CorruptVideoError   decoding failed inside the clip, or flagged a frame of it as corrupt
       |- TruncatedVideoError the file ends before the clip
       |- ClipTooShortError   the video, or the given range, is shorter than one clip
       |- HdrError            the picture is HDR, and --hdr is `reject`
       |- TarDamagedError     all bytes of the tar were read, and it does not end as a tar must
       |- LimitExceededError  the video exceeds a limit (pixels, duration, frames, bytes)
       |- UnsafeAddressError  a table names an address that it may not name; found when it was opened
       +- FilteredError       a filter of the user refuses the clip

The root and the storage errors are those of the reader, `latentmill.errors`: what it raises is caught by the same name.
Each error takes only strings and numbers, so it pickles and crosses process boundaries.
"""

from __future__ import annotations

from typing import ClassVar

from latentmill.errors import (
    AccessError,
    ChangedError,
    LatentmillError,
    NotFoundError,
    StorageError,
    TransientError,
)

__all__ = [
    "AccessError",
    "ChangedError",
    "ClipTooShortError",
    "ConfigError",
    "CorruptVideoError",
    "EncoderError",
    "FilteredError",
    "HdrError",
    "LatentmillError",
    "LimitExceededError",
    "NoFramesError",
    "NoVideoStreamError",
    "NotFoundError",
    "StorageError",
    "TarDamagedError",
    "TransientError",
    "TruncatedVideoError",
    "UnreadableError",
    "UnsafeAddressError",
    "UnsupportedCodecError",
    "UnsupportedEditsError",
    "VideoError",
]


class ConfigError(LatentmillError, ValueError):
    """A setting is wrong. The message names the field, its value and what is allowed."""


class EncoderError(LatentmillError):
    """No encoder can start: the weights, the self-check, or memory. The message says why."""


class VideoError(LatentmillError):
    """The content of a video is bad. `reason` is the Rejection's reason."""

    reason: ClassVar[str] = "corrupt"


class UnreadableError(VideoError):
    reason = "unreadable"


class NoVideoStreamError(VideoError):
    reason = "no_video_stream"


class UnsupportedCodecError(VideoError):
    reason = "unsupported_codec"


class UnsupportedEditsError(VideoError):
    reason = "unsupported_edits"


class NoFramesError(VideoError):
    reason = "no_frames"


class CorruptVideoError(VideoError):
    reason = "corrupt"


class TruncatedVideoError(VideoError):
    reason = "truncated"


class ClipTooShortError(VideoError):
    reason = "too_short"


class TarDamagedError(VideoError):
    reason = "tar_damaged"


class LimitExceededError(VideoError):
    reason = "limit_exceeded"


class UnsafeAddressError(VideoError):
    reason = "unsafe_uri"


class HdrError(VideoError):
    reason = "hdr"


class FilteredError(VideoError):
    """`reason` names the filter: `filtered_min_size`, `filtered_static`, ..."""

    def __init__(self, filter_name: str, message: str) -> None:
        super().__init__(filter_name, message)
        self.reason = f"filtered_{filter_name}"  # type: ignore[misc]

    def __str__(self) -> str:
        return str(self.args[1])
