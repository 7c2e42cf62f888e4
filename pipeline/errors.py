"""Every error that latentmill raises on purpose.

    LatentmillError
    |- ConfigError            a setting is wrong: raised before Ray starts, names field, value and what is allowed
    |- EncoderError           no encoder can start; the run ends, what is committed stays
    |- StorageError           storage did not do what was asked, after retries; the shard stays uncommitted
    |  |- NotFoundError       a definite "no such object"; the only storage error that may become a Rejection
    |  |- AccessError         forbidden or unauthenticated
    |  |- ChangedError        the object is not the one that the plan recorded (size or etag)
    |  +- TransientError      throttled, timed out, cut off: tried again, and seen outside only when the tries ran out
    |- VideoError             bad content; becomes a Rejection with `reason`
       |- OpenError           not a video that FFmpeg can open
       |- NoVideoStreamError  a container without a video stream
       |- UnsupportedCodecError  no decoder for the video stream
       |- UnsupportedEditsError  an MP4 edit list of which FFmpeg would make frames at wrong times
       |- NoFramesError       opens, but not one frame comes out
       |- CorruptVideoError   decoding failed or gave frames flagged corrupt where the clip lies
       |- TruncatedVideoError the file ends before the clip does
       |- ClipTooShortError   the video, or the given range, is shorter than one clip
       |- HdrError            the picture is HDR, and the policy is to refuse it
       |- TarDamagedError     a tar whose bytes all came, and which does not end as a tar does
       |- LimitExceededError  larger than a stated limit (pixels, duration, frames, bytes)
       |- UnsafeAddressError  an address that a table may not name, found out when it was opened
       +- FilteredError       refused by a filter that the user asked for

Errors cross process boundaries, so every one pickles: plain string and number arguments only.
"""

from __future__ import annotations

from typing import ClassVar


class LatentmillError(Exception):
    """Root of the tree."""


class ConfigError(LatentmillError, ValueError):
    """A setting is wrong. The message names the field, its value and what is allowed."""


class EncoderError(LatentmillError):
    """No encoder can start: the weights, the self-check, or memory. The message says why."""


class StorageError(LatentmillError, OSError):
    """Storage failed after retries. Never a Rejection: the shard stays open and the next run takes it up."""


class NotFoundError(StorageError):
    """The store says definitely that the object does not exist."""


class AccessError(StorageError):
    """The store refused: forbidden, or no credentials."""


class ChangedError(StorageError):
    """The object is not the one that the plan recorded."""


class TransientError(StorageError):
    """The store may well do it the next time: throttled, timed out, reset, body cut short."""


class VideoError(LatentmillError):
    """The content is at fault. `reason` is the Rejection's reason."""

    reason: ClassVar[str] = "corrupt"


class OpenError(VideoError):
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
