"""List `_staging/`: the parts, verdicts and notes of faults that earlier runs left, by shard."""

from __future__ import annotations

from collections import defaultdict

from pipeline.output import layout
from pipeline.records import ChunkId, ClipKey
from pipeline.shards import Staged
from pipeline.storage import TEMPORARY, Storage

TEMPORARY_SECONDS = 3600.0
"""A temporary file of a store that is older than this was left by a kill: no write takes an hour."""

OF_THE_STORE = TEMPORARY.split("/")[1]
"""The folder of the temporary files of a store, beside the folders of the shards."""


def list_staged(output: Storage) -> dict[str, Staged]:
    """Return what is staged, by shard. OF_THE_STORE is among them if its temporary files are old."""
    parts: defaultdict[str, list[ChunkId]] = defaultdict(list)
    verdicts: defaultdict[str, list[ClipKey]] = defaultdict(list)
    faults: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    seen: dict[str, None] = {}
    youngest = 0.0
    for entry in output.list(layout.STAGING):
        _, shard, name = [*entry.path.split("/", 2), ""][:3]
        if shard == OF_THE_STORE:
            youngest = max(youngest, entry.mtime)
            continue
        seen[shard] = None
        if match := layout.PART.fullmatch(name):
            video, clip, chunk, num_chunks = map(int, match.groups())
            parts[shard].append(ChunkId(shard=shard, video=video, clip=clip, chunk=chunk, num_chunks=num_chunks))
        elif match := layout.VERDICT.fullmatch(name):
            verdicts[shard].append((int(match[1]), int(match[2])))
        elif match := layout.FAULTS.fullmatch(name):
            faults[shard].append((int(match[1]), int(match[2])))
    if youngest and output.now() - youngest > TEMPORARY_SECONDS:
        seen[OF_THE_STORE] = None
    return {
        shard: Staged(parts=tuple(parts[shard]), verdicts=tuple(verdicts[shard]), faults=tuple(faults[shard]))
        for shard in seen
    }
