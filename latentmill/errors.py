"""Every error that reading raises on purpose, and the root of those that the rest of latentmill raises.

    LatentmillError
    +- ReadError
       |- OpenError              the place is no output, or a newer format, or a file or a column is missing
       |- EmptySelectionError    a filter or a join keeps no row
       |- StateError             a saved state belongs to other rows or to another order
       |- DamagedRowError        the stored bytes of a row are not those that were written
       +- StorageError           the storage failed, and so did every retry
          |- NotFoundError       the storage answers that there is no such object
          |- AccessError         the credentials are missing, wrong, or do not suffice
          |- ChangedError        the object is not the expected one (size or ETag)
          +- TransientError      throttled, timed out, cut off; raised when the retries ran out

Each error takes one string, so it pickles and crosses process boundaries.
"""

from __future__ import annotations


class LatentmillError(Exception):
    """Root of the tree."""


class ReadError(LatentmillError):
    """Reading failed."""


class OpenError(ReadError, ValueError):
    """The output, or what was asked of it, cannot be opened. The message names it and says what is allowed."""


class EmptySelectionError(ReadError, ValueError):
    """A filter or a join keeps no row."""


class StateError(ReadError, ValueError):
    """The state was saved with other rows or other settings. The message names each difference."""


class DamagedRowError(ReadError):
    """The bytes of a row fail their checksum, or are missing. The message names the file and the id."""


class StorageError(ReadError, OSError):
    """The storage failed, and so did every retry. Never a Rejection: a shard stays open for the next run."""


class NotFoundError(StorageError):
    """The storage answers that the object does not exist."""


class AccessError(StorageError):
    """The storage refuses: the credentials are missing, wrong, or do not suffice."""


class ChangedError(StorageError):
    """The object is not the expected one."""


class TransientError(StorageError):
    """The storage may succeed the next time: throttled, timed out, reset, body cut short."""
