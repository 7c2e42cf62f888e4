"""What one kind of run says of itself: WHAT is open, HOW it is made, and WHEN it is done."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from pipeline.errors import LatentmillError, StorageError
from pipeline.runs.progress import Progress
from pipeline.runs.summary import Ending, RunSummary

log = logging.getLogger(__name__)

S = TypeVar("S", bound=RunSummary, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a pass went on with a shard."""

    shard: str
    state: Literal["done", "open", "elsewhere", "stored", "lost", "hopeless"]
    """done: its file stands. open: it failed, and `message` says why. elsewhere: another run holds it. stored:
    something of it is written. lost: what was stored of it is gone, and another pass makes it. hopeless: the run ends
    early, because the rest would end as the first shards did; `message` says how."""
    message: str = ""
    write: str = ""
    """What was written, or could not be, such as "part"; "" if nothing was tried. It counts failures in a row."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the event of a shard that is done says of it, as JSON values."""


class Work(Protocol[S]):
    """What the engine needs of a kind of run."""

    @property
    def progress(self) -> Progress: ...

    def left(self) -> list[str]:
        """Return the shards of this run that are open, as of the last look."""

    def look(self) -> None:
        """Look again which of them are open: a shard is done when its file exists. One LIST."""

    def make(self) -> Generator[Outcome, None, None]:
        """Make what is left, and yield how it goes. It is closed before its end when the run has to stop at once."""

    def summary(self, ending: Ending) -> S:
        """Return what stands there at the last look, and what this run did."""


class UnwrittenError(StorageError):
    """The output could not be written: the shard stays open."""


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Raise UnwrittenError in place of a StorageError of the body."""
    try:
        yield
    except StorageError as error:
        raise UnwrittenError(str(error)) from error


def why(shard: str, error: Exception) -> str:
    """Return why a shard stays open. An error that is not ours is told with its type, and logged."""
    if isinstance(error, LatentmillError):
        return str(error)
    log.error("shard=%s", shard, exc_info=error)
    return f"{type(error).__name__}: {error}"


def ended(shard: str, result: Any, write: str, facts: Mapping[str, object]) -> Outcome:
    """Return the outcome of a call that returned a result or raised it."""
    if not isinstance(result, Exception):
        return Outcome(shard=shard, state="done", write=write, facts=facts)
    unwritten = isinstance(result, UnwrittenError)
    return Outcome(shard=shard, state="open", message=why(shard, result), write=write if unwritten else "")
