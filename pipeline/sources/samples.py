"""Sample, a video of a source before it has an ordinal, and the parsing of its sidecars.

All of this text is untrusted: it is parsed within limits, and values that an output row cannot store (half surrogates,
NaN) are rejected or set to null now, not in the middle of a commit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from pipeline.records import Reason, Rejection

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".mkv",
        ".webm",
        ".avi",
        ".divx",
        ".flv",
        ".f4v",
        ".wmv",
        ".asf",
        ".wtv",
        ".rm",
        ".rmvb",
    }
    | {".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".vob", ".ts", ".m2ts", ".mts", ".m2t", ".trp", ".mod", ".tod"}
    | {".ogv", ".ogm", ".3gp", ".3g2", ".mxf", ".gxf", ".nut", ".dv", ".y4m", ".amv", ".ivf", ".obu", ".mjpeg", ".mjpg"}
    | {".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".h266", ".266", ".vvc", ".av1", ".gif", ".webp", ".apng"}
    | {".ogg", ".ogx", ".ismv", ".mk3d", ".mj2", ".dav", ".dat", ".vc1", ".h261", ".h263", ".cavs", ".drc", ".mpv2"}
)
"""File suffixes of video containers that FFmpeg can read. The content decides later."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl", ".ppm"})
"""Suffixes of still images, which are videos of one frame. Beside a video of the same name, an image is its poster and
is ignored."""

SIDECAR_SUFFIXES = frozenset({".json", ".txt"})

MAX_SIDECAR_BYTES = 1 << 20
MAX_NAME_BYTES = 4096

MAX_NESTING = 64
"""Limit of nesting in JSON. With Python's stack limit, the same text could pass in one process and fail in another."""

_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A video as listed by its source: a records.Video without shard and ordinal."""

    key: str
    uri: str
    payload: memoryview | None = None
    size: int | None = None
    etag: str | None = None
    public_only: bool = False
    caption: str | None = None
    start: Fraction | None = None
    end: Fraction | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    only: tuple[int, ...] | None = None


_HIDDEN_FOLDERS = frozenset(
    {"@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found", "__macosx"}
)
"""Folders without a dot that systems make beside the user's files: thumbnails, waste, snapshots. In lower case."""


def is_hidden(path: str) -> bool:
    """Return whether a name of `path` begins with a dot (".Trash-1000") or is a folder of the system ("@eaDir")."""
    return any(
        (name[:1] == "." and name not in (".", "..")) or name.lower() in _HIDDEN_FOLDERS for name in path.split("/")
    )


def suffix_of(name: str) -> str:
    """Return the last suffix in lower case: "a/clip.v2.MP4" -> ".mp4"; "" for "a/clip", "clip." and ".hidden"."""
    # PurePosixPath gives the same but takes ten times as long, and a plan may need ten million suffixes.
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return f".{suffix.lower()}" if stem and suffix else dot[1:]


def refuse(reason: Reason, message: str, *, key: str, uri: str) -> Rejection:
    """Return the Rejection of one sample by the read stage. Untrusted text in it is cut to a reasonable length."""
    return Rejection(reason=reason, stage="read", message=message[:500], key=key[:MAX_NAME_BYTES], uri=uri[:8192])


def name_refusal(name: str) -> str | None:
    """Return why a member's name is rejected, or None. We never use it as a path, but other programs may."""
    if name.startswith("/") or ".." in name.split("/"):
        return "an absolute name or one with '..'"
    if "\0" in name or not _is_text(name):
        return "a name with a NUL, or that is not UTF-8"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"a name of more than {MAX_NAME_BYTES} bytes"
    return None


def parse_sidecars(text: bytes | None, metadata: bytes | None) -> tuple[str | None, dict[str, Any]]:
    """Return caption and other fields from a `.txt` and a `.json`. The caption is the `.txt`, "caption" or "text".

    Raises:
        ValueError: not UTF-8, not JSON, or not a JSON object.
    """
    caption, extra = None, {}
    if metadata is not None:
        extra = parse_json(metadata)
        if not isinstance(extra, dict):
            raise ValueError(f"the .json holds a {type(extra).__name__}, not an object")
    if text is not None:
        try:
            caption = text.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"the .txt is not UTF-8: {error}") from error
    else:
        caption = take_caption(extra)
    return caption, extra


def take_caption(fields: dict[str, Any]) -> str | None:
    """Remove and return the caption: the first of "caption" and "text" that is a string."""
    for name in ("caption", "text"):
        if isinstance(fields.get(name), str):
            return str(fields.pop(name))
    return None


def parse_json(data: bytes | str) -> Any:
    """Parse JSON into values that can be written as JSON again: NaN and infinities become null.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or with half a surrogate pair.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        _check_nesting(text)
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
        if not _is_text(json.dumps(value, ensure_ascii=False)):
            raise ValueError("half a surrogate pair")
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    return value


def _check_nesting(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_NESTING:
        return
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > MAX_NESTING:
            raise ValueError(f"nested deeper than {MAX_NESTING} levels")


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a table as JSON types: without nulls, dates and decimals as text.

    Raises:
        ValueError: text that is not UTF-8.
    """
    kept = {name: value for name, value in fields.items() if value is not None}
    parsed: dict[str, Any] = parse_json(json.dumps(kept, default=str))
    return parsed


def parse_seconds(value: object) -> Fraction | None:
    """Parse a time in seconds exactly as written: 0.1 -> 1/10. None and "" mean that no time is given.

    Raises:
        ValueError: not a number from 0 to 1e9, or written with more than 40 characters.
    """
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    if len(text) > 40 or isinstance(value, bool):
        raise ValueError(f"not a time in seconds: {text[:40]!r}")
    numerator, slash, denominator = text.partition("/")
    try:
        # With Decimal, because Fraction("1e999999999") would compute the power.
        seconds = _exact(numerator) / (_exact(denominator) if slash else 1)
    except (InvalidOperation, ZeroDivisionError, ValueError) as error:
        raise ValueError(f"not a time in seconds: {text!r}") from error
    if not 0 <= seconds <= 10**9:
        raise ValueError(f"not a time from 0 to 1e9 seconds: {text!r}")
    return seconds


def _exact(text: str) -> Fraction:
    number = Decimal(text)
    if not number.is_finite() or (number and abs(number.adjusted()) > 40):
        raise ValueError(text)
    return Fraction(number)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
