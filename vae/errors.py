"""CheckpointError, the only error class of this package. Wrong arguments raise ValueError."""

from __future__ import annotations


class CheckpointError(ValueError):
    """The checkpoint cannot be loaded. The message names the path, what was found and what was expected."""
