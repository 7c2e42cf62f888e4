"""The first picture of a video that can be shown: complete in itself and not flagged as corrupt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from pipeline.decode.opening import Feed, choose_stream, open_container
from pipeline.decode.reader import Picture, PictureReader
from pipeline.decode.spec import Times
from pipeline.errors import CorruptVideoError, NoFramesError, VideoError

_MAX_LEADING_CORRUPT = 64
"""Flagged frames allowed before the first clean one: leading pictures of an open GOP, or a stream cut within a GOP."""


def from_first_clean(reader: PictureReader) -> Iterator[Picture]:
    """Yield pictures from the first one that needs no earlier frame and is not flagged as corrupt.

    Raises:
        CorruptVideoError, NoFramesError: there is none.
    """
    num_corrupt = 0
    pictures = reader.pictures()
    for picture in pictures:
        if picture.corrupt:
            num_corrupt += 1
            if num_corrupt > _MAX_LEADING_CORRUPT:
                raise CorruptVideoError(f"the decoder flags the first {num_corrupt} frames as corrupt")
        elif picture.complete:
            yield picture
            yield from pictures
            return
    if reader.frames_decoded > num_corrupt or (reader.errors and reader.lacks_keyframe):
        raise NoFramesError("the video stream holds no keyframe that decoding could begin with")
    if num_corrupt or reader.errors:
        raise CorruptVideoError(f"no frame can be decoded: {reader.first_error or 'all flagged corrupt'}")
    raise NoFramesError("the video stream holds no frame")


def first_shown(feed: Feed, times: Times) -> int | None:
    """Return the ticks of the first frame that decoding shows; None if it shows none."""
    with open_container(feed) as container, suppress(VideoError):
        reader = PictureReader(container, choose_stream(container, feed), feed, times)
        return next((picture.ticks for picture in from_first_clean(reader)), None)
    return None
