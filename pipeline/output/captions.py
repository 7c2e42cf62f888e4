"""Count which rows have a caption: for every summary, so that no run trains on the empty prompt unseen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MOST_EMPTY = 0.1
"""Share of rows without a caption above which a summary warns and --strict refuses. Training drops about a tenth of the
captions on purpose, for classifier-free guidance."""

READ = ("caption", "text")
"""Fields of a source that are read as the caption, if they hold text."""

LIKE_CAPTIONS = (*READ, "captions", "prompt", "description")
"""Fields of a source that probably hold the caption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """How many rows have a caption."""

    rows: int = 0
    empty: int = 0
    """Rows whose caption is missing, empty or white space."""
    not_text: int = 0
    """Those of them whose source has a list, an object or a number where the caption is read."""
    unread: dict[str, int] = field(default_factory=dict)
    """Those of them whose source has another field that looks like a caption, by its name."""

    def __add__(self, other: Captions) -> Captions:
        return Captions(
            rows=self.rows + other.rows,
            empty=self.empty + other.empty,
            not_text=self.not_text + other.not_text,
            unread=dict(Counter(self.unread) + Counter(other.unread)),
        )

    @property
    def empty_share(self) -> float:
        """Share of the rows without a caption."""
        return self.empty / self.rows if self.rows else 0.0

    @property
    def is_poor(self) -> bool:
        """Whether so many rows have none that somebody should look."""
        return self.empty_share > MOST_EMPTY

    def line(self) -> str:
        """Return the counts as words: "11 of 30 rows; 3 are not text"."""
        words = [f"{self.rows - self.empty} of {self.rows} rows"]
        if self.not_text:
            words.append(f"{self.not_text} are not text")
        words += [f"{count} have `{name}`, which is not read" for name, count in sorted(self.unread.items())]
        return "; ".join(words)

    def warning(self) -> str:
        """Return what is wrong if many rows have no caption; else nothing."""
        if not self.is_poor:
            return ""
        return f"{self.empty} of {self.rows} captions ({self.empty_share:.0%}) are empty: a model learns no words there"


def of_texts(texts: Iterable[str | None]) -> Captions:
    """Count captions."""
    blank = [not (text or "").strip() for text in texts]
    return Captions(rows=len(blank), empty=sum(blank))


def of_index(index: pa.Table) -> Captions:
    """Count the captions of the rows of an index, and say what stands in the place of those that are missing."""
    is_empty = pc.equal(pc.utf8_trim_whitespace(pc.fill_null(index["caption"], "")), "")
    others = index.filter(is_empty)["extra_json"]
    not_text, unread = 0, Counter[str]()
    for extra in others.filter(pc.match_substring_regex(others, f'"({"|".join(LIKE_CAPTIONS)})":')).to_pylist():
        fields: dict[str, Any] = json.loads(extra)
        found = [name for name in LIKE_CAPTIONS if fields.get(name)]
        not_text += bool(found) and found[0] in READ
        if found and found[0] not in READ:
            unread[found[0]] += 1
    return Captions(rows=len(index), empty=len(others), not_text=not_text, unread=dict(unread))
