"""List `_staging/`: the parts, verdicts and notes of faults that earlier runs left, by shard."""

from __future__ import annotations

from collections import defaultdict

from pipeline.output import layout
from pipeline.records import ChunkId, ClipKey
from pipeline.shards import Staged
from pipeline.storage import TEMPORARY, Storage


def list_staged(output: Storage) -> dict[str, Staged]:
    """Return what is staged, by shard."""
    parts: defaultdict[str, list[ChunkId]] = defaultdict(list)
    verdicts: defaultdict[str, list[ClipKey]] = defaultdict(list)
    faults: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    seen: dict[str, None] = {}
    for entry in output.list(layout.STAGING):
        if entry.path.startswith(TEMPORARY):
            continue
        _, shard, name = [*entry.path.split("/", 2), ""][:3]
        seen[shard] = None
        if match := layout.PART.fullmatch(name):
            video, clip, chunk, num_chunks = map(int, match.groups())
            parts[shard].append(ChunkId(shard=shard, video=video, clip=clip, chunk=chunk, num_chunks=num_chunks))
        elif match := layout.VERDICT.fullmatch(name):
            verdicts[shard].append((int(match[1]), int(match[2])))
        elif match := layout.FAULTS.fullmatch(name):
            faults[shard].append((int(match[1]), int(match[2])))
    return {
        shard: Staged(parts=tuple(parts[shard]), verdicts=tuple(verdicts[shard]), faults=tuple(faults[shard]))
        for shard in seen
    }
