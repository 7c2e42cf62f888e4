"""Every error that reading raises on purpose.

    ReadError
    |- OpenError              not an output, a newer format, a missing file, an unknown column: nothing was opened
    |- EmptySelectionError    a filter or a join keeps no row
    |- StateError             a saved state belongs to other data or to another order
    |- DamagedRowError        the stored bytes of a row are not what was written: names file and id
    +- StorageError           storage failed, after retries
       |- NotFoundError       a definite "no such object"
       +- AccessError         forbidden, or no valid credentials

They cross process boundaries, so every one pickles: one string is the only argument.
"""

from __future__ import annotations


class ReadError(Exception):
    """Root of the tree."""


class OpenError(ReadError, ValueError):
    """The output, or what was asked of it, cannot be opened. The message names it and says what is allowed."""


class EmptySelectionError(ReadError, ValueError):
    """No row is left."""


class StateError(ReadError, ValueError):
    """A state that was saved with other rows or other settings. The message names each difference."""


class DamagedRowError(ReadError):
    """The bytes of a row fail their checksum, or are not there."""


class StorageError(ReadError, OSError):
    """Storage failed, after retries."""


class NotFoundError(StorageError):
    """The store says definitely that the object does not exist."""


class AccessError(StorageError):
    """The store refused: forbidden, or no valid credentials."""
