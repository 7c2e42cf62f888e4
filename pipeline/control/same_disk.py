"""Refuse a local path on a cluster if not every node sees the same files there: a node that sees others would reject
sound videos as not found, or keep its latents for itself.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, StorageError
from pipeline.records import canonical_json
from pipeline.settings.job import Job
from pipeline.shards import TableRange
from pipeline.sources.listing import list_source
from pipeline.sources.samples import Sample
from pipeline.sources.tables import read_table
from pipeline.storage.addresses import normal_uri, scheme_of

OnEveryNode = Callable[..., dict[str, Any]]
"""Call a function with arguments on each node. Return the results by node."""

NOTHING = "nothing"

ROWS = 64
"""Rows of a table whose videos are looked at."""


def check_same_disk(job: Job, on_every_node: OnEveryNode) -> None:
    """Look at every local path of a job from all nodes.

    Raises:
        ConfigError: they do not see the same.
    """
    for source in job.source:
        if not scheme_of(normal_uri(source)):
            _demand_one_view(f"--source {source}", on_every_node(look, source, job.shard_size, job.allow_private))
    check_same_output(job.output, on_every_node)


def check_same_output(output: str, on_every_node: OnEveryNode) -> None:
    """Look at a local output from all nodes. Raises ConfigError if they do not see the same."""
    if not scheme_of(normal_uri(output)):
        with _token(Path(normal_uri(output))) as token:
            _demand_one_view(f"--output {output}", on_every_node(read_token, str(token)))


def look(source: str, shard_size: int, allow_private: bool) -> str:
    """Return a digest of the first shard of a source, and of the local videos that the beginning of a table names."""
    try:
        shard = next(list_source(source, shard_size=shard_size), None)
        if shard is None:
            return NOTHING
        seen: list[Any] = [shard.to_row()]
        if isinstance(shard.members, TableRange):
            rows = islice(read_table(shard, shard.members, allow_private=allow_private, allow_local=True), ROWS)
            seen += [_size(row.uri) for row in rows if isinstance(row, Sample)]
    except (ConfigError, StorageError):
        return NOTHING
    return sha256(canonical_json(seen).encode()).hexdigest()


def read_token(path: str) -> str:
    """Return what a file holds."""
    try:
        return Path(path).read_text()
    except OSError:
        return NOTHING


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """Write a file that only a node with the same disk can read."""
    token = folder / f".token-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token.write_text(uuid.uuid4().hex)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written: {error.strerror}") from error
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def _size(uri: str) -> int | None:
    """Return the size of a local file, -1 where there is none; None for an address elsewhere."""
    if scheme_of(uri):
        return None
    path = Path(normal_uri(uri))
    return path.stat().st_size if path.exists() else -1


def _demand_one_view(flag: str, views: dict[str, str]) -> None:
    if len(set(views.values())) == 1 and NOTHING not in views.values():
        return
    blind = sorted(node for node, view in views.items() if view == NOTHING)
    what = f"{', '.join(blind)} see nothing there" if blind else f"{', '.join(sorted(views))} see different files"
    raise ConfigError(
        f"{flag} is a local path, and not every node of the cluster has this disk: {what}. "
        "Use object storage, or a file system that all nodes share"
    )
