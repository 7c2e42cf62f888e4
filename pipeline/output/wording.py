"""Format durations, sizes and texts of strangers for people."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves the cursor, changes colours, titles or the direction of writing, or cannot be printed."""


def printable(text: object) -> str:
    """Return a text with control characters shown escaped: a caption or a name must not steer the terminal."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))


def on_one_line(text: object) -> str:
    """Return the same with line breaks escaped, too: a value must not look like several."""
    return printable(text).replace("\n", "\\n")


def duration(seconds: float) -> str:
    """Format a duration: 1:02:03 from an hour on, 2:03 from a minute on, otherwise 3.1 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(num_bytes: float) -> str:
    """Format a size in decimal units with three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.3g} {unit}" if unit != "B" else f"{num_bytes:.0f} B"
