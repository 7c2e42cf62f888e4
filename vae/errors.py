"""The one error of this package that is more than a ValueError."""

from __future__ import annotations


class CheckpointError(ValueError):
    """Not a checkpoint that can be loaded. The message names the place, what was found and what was expected."""
