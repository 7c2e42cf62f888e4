"""The results of verify: problems, notes and counts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem in an output."""

    file: str
    """Path of the file under the output."""
    row: int | None = None
    """Row of the file, from 0."""
    what: str
    """The column, or the guarantee that does not hold."""
    found: str
    expected: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{where}: {self.what}: found {self.found}, expected {self.expected}"


@dataclass(slots=True, kw_only=True)
class Checked:
    """The result of checking a shard, or (with shard "") a part of the whole output."""

    shard: str = ""
    rows: int = 0
    rejections: int = 0
    latent_bytes: int = 0
    texts: int = 0
    """Rows of text files."""
    remaining: int = 0
    """Number of planned shards without a data file."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Facts that are no problems: unfinished shards, and derived files that are not up to date."""

    def wrong(self, file: str, what: str, found: object, expected: object, row: int | None = None) -> None:
        """Add a problem."""
        self.problems.append(Problem(file=file, row=row, what=what, found=str(found), expected=str(expected)))
