"""The nouns of a text: a caption of a row, and its embedding."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipeline.errors import LatentmillError


class NonfiniteTextError(LatentmillError):
    """An embedding holds NaN or infinity: its shard stays open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """The caption of one row of a data file."""

    id: str
    """The id of the row; "" for the empty prompt."""
    text: str | None
    """None if the row has no caption."""

    @property
    def sha256(self) -> str | None:
        """The sha256 of the caption's UTF-8 bytes, in hex digits."""
        return None if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What the encoder makes of one caption."""

    payload: bytes
    """The bytes of [S, E]: little-endian, C order."""
    shape: tuple[int, int]
    """(S, E). S has no padding."""
    dtype: str
    """A name in torch."""
    length: int
    """How many of the S tokens are of the text, special tokens included."""
    truncated: bool
    """Whether the caption had more tokens than the Spec allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRow:
    """One row of a text file."""

    id: str
    caption_sha256: str | None
    """None if the row has no caption."""
    embedding: Embedding | None
    """None if the row was dropped, because its caption is missing or empty."""
