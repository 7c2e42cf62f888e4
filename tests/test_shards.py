"""Law: a shard survives its row, and its members have one text for ever, since names and plan files depend on it."""

from __future__ import annotations

import json

import pytest

from pipeline.records import ChunkId
from pipeline.shards import FileGroup, ListedVideo, Members, PlanPlace, Retry, Shard, ShardKind, Staged, TableRange
from pipeline.shards import parse_members as parse

BEFORE = Shard(
    name="a-0123456789ab",
    kind="files",
    uri="/in",
    size=3,
    etag="",
    members=PlanPlace(plan="000000.parquet", row_group=0, row=1),
)
MEMBERS: dict[str, tuple[ShardKind, Members]] = {
    r'[{"path":"\u00e4.mp4","size":3,"etag":"e","sidecars":{".txt":[1,"f"]}}]': (
        "files",
        FileGroup((ListedVideo("ä.mp4", 3, "e", {".txt": (1, "f")}),)),
    ),
    '{"start":3,"stop":6,"rows":3,"table_size":99}': ("table", TableRange(start=3, stop=6, rows=3, table_size=99)),
    '{"start":0,"stop":6,"rows":3}': ("table", TableRange(start=0, stop=6, rows=3)),
    '{"start":7,"stop":9,"rows":1,"columns":["video","a"]}': (
        "table",
        TableRange(start=7, stop=9, rows=1, columns=("video", "a")),
    ),
    r'{"of":{"etag":"","kind":"files","members":"{\"plan\":\"000000.parquet\",\"row\":1,\"row_group\":0}",'
    r'"name":"a-0123456789ab","size":3,"staged":"","uri":"/in"},"rest":3,"videos":[[0,[0,1]],[2,null]]}': (
        "retry",
        Retry(of=BEFORE, videos=((0, (0, 1)), (2, None)), rest=3),
    ),
}
STAGED = Staged(
    parts=(ChunkId(shard=BEFORE.name, video=1, clip=2, chunk=3, num_chunks=4),), verdicts=((5, 6),), faults=((7, 8),)
)


@pytest.mark.parametrize("text", MEMBERS)
def test_members_have_one_text(text: str) -> None:
    kind, members = MEMBERS[text]
    assert (members.to_text(), parse(kind, text)) == (text, members)


@pytest.mark.parametrize("members", [None, BEFORE.members, *(members for _, members in MEMBERS.values())])
@pytest.mark.parametrize("staged", [Staged(), STAGED])
def test_a_shard_survives_its_row(members: Members | None, staged: Staged) -> None:
    kind = next((kind for kind, known in MEMBERS.values() if known == members), "tar")
    shard = Shard(name=BEFORE.name, kind=kind, uri="u", size=1, etag="e", members=members, staged=staged)
    row = shard.to_row()
    assert all(isinstance(value, str | int) for value in row.values())
    assert Shard.from_row(json.loads(json.dumps(row))) == shard
