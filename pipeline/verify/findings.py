"""What verify finds: problems, notes and counts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong."""

    file: str
    """Under the output."""
    row: int | None = None
    """Of that file, from 0."""
    what: str
    """The column, or the promise that is broken."""
    found: str
    expected: str

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} row {self.row}"
        return f"{where}: {self.what}: found {self.found}, expected {self.expected}"


@dataclass(slots=True, kw_only=True)
class Checked:
    """What came out of checking a shard, or (shard "") something of the whole output."""

    shard: str = ""
    rows: int = 0
    rejections: int = 0
    latent_bytes: int = 0
    remaining: int = 0
    """Planned shards without a data file."""
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Worth saying, and not wrong: what is not done yet, what is derived and may lag."""

    def wrong(self, file: str, what: str, found: object, expected: object, row: int | None = None) -> None:
        """Add a problem."""
        self.problems.append(Problem(file=file, row=row, what=what, found=str(found), expected=str(expected)))
