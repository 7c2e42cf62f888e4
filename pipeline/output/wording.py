"""Format durations and sizes for people."""

from __future__ import annotations


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
