"""Each fault on each operation that a job uses: rows out equal rows in, and never a second or a partial object.

The job here is the storage side of the real one: plan, read, stage, list, commit, index, sweep.
"""

from __future__ import annotations

import itertools
import json
import random
from typing import TYPE_CHECKING

import pytest

from pipeline.plan.frozen import make_plan
from pipeline.records import Video
from pipeline.stages.read_shard import read_shard
from pipeline.storage import Storage, read_object
from tests.fault_proxy import DropResponse, Fault, FaultProxy, Reset, Status, Truncate
from tests.sources import make_tar

if TYPE_CHECKING:
    from tests.s3 import S3

pytest_plugins = ["tests.s3"]

Rows = list[tuple[str, str | None, int]]

FAULTS: dict[str, Fault] = {
    "slow down": Status(503, "SlowDown"),
    "internal error": Status(500, "InternalError"),
    "bad gateway": Status(502, "BadGateway"),
    "conflict": Status(409, "ConditionalRequestConflict"),
    "reset": Reset(),
    "lost response": DropResponse(),
    "empty body": Truncate(0),
    "cut body": Truncate(41),
}
OPERATIONS = ["ListObjectsV2", "GetObject", "HeadObject", "PutObject", "DeleteObjects"]
WITHOUT_BODY = {"HeadObject", "PutObject"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentmill.store.retry.BASE_SECONDS", 0.001)


@pytest.fixture
def sources(s3: S3) -> list[str]:
    for name in "ab":
        members = [(f"{name}{i}.{ext}", f"{name}{i}{ext}".encode() * 99) for i in range(3) for ext in ("mp4", "txt")]
        s3.put(f"in/{name}.tar", make_tar(members))
    for number in range(3):
        s3.put(f"in/clips/{number}.mp4", b"clip %d" % number)
        s3.put(f"in/clips/{number}.txt", b"caption %d" % number)
    s3.put("in/t.jsonl", b"".join(b'{"video": "clips/%d.mp4", "caption": "row"}\n' % number for number in range(3)))
    return [s3.uri("in/*.tar"), s3.uri("in/clips"), s3.uri("in/t.jsonl")]


def run_job(sources: list[str], output: Storage) -> None:
    plan = make_plan(output, sources, shard_size=2)
    for shard in plan.remaining():
        for record in read_shard(shard):
            if isinstance(record, Video):
                data = read_object(record.uri) if record.payload is None else bytes(record.payload)
                row = [record.key, record.caption, len(data)]
                output.put(
                    f"_staging/{shard.name}/v{record.video:06d}.c000000.k0000of0001.part", json.dumps(row).encode()
                )
        parts = [output.read(entry.path) for entry in output.list(f"_staging/{shard.name}/")]
        data = b"\n".join(parts)
        assert output.create(f"data/{shard.name}.parquet", data), "nobody else is there"
        output.put(f"index/{shard.name}.parquet", data)
        output.delete(f"_staging/{shard.name}/")


def rows_of(s3: S3, folder: str = "data") -> Rows:
    paths = [path for path in s3.paths() if path.startswith(f"out/{folder}/")]
    return sorted(tuple(json.loads(line)) for path in paths for line in s3.get(path).splitlines())


EXPECTED: Rows = sorted(
    [
        *((f"{name}{i}", f"{name}{i}txt" * 99, 5 * 99) for name in "ab" for i in range(3)),
        *((f"{number}.mp4", f"caption {number}", 6) for number in range(3)),
        *((f"clips/{number}.mp4", "row", 6) for number in range(3)),
    ]
)


def check(s3: S3, faults: FaultProxy, sources: list[str]) -> None:
    output = Storage(s3.uri("out"))
    run_job(sources, output)
    assert rows_of(s3) == rows_of(s3, "index") == EXPECTED
    assert any(met != "ok" for _, _, met in faults.requests), "the faults were met"
    assert not [path for path in s3.paths() if path.startswith("out/_staging")]
    assert len([path for path in s3.paths() if path.startswith("out/plan")]) == 1
    faults.clear()
    assert list(make_plan(output, sources).remaining()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        (operation, fault)
        for operation, fault in itertools.product(OPERATIONS, FAULTS)
        if operation not in WITHOUT_BODY or "body" not in fault
    ],
)
def test_each_fault_on_each_operation(
    s3: S3, faults: FaultProxy, sources: list[str], operation: str, fault: str
) -> None:
    faults.add(operation, FAULTS[fault], times=1000, every=2)
    check(s3, faults, sources)


@pytest.mark.parametrize("seed", range(2))
def test_all_faults_on_all_operations_at_once(s3: S3, faults: FaultProxy, sources: list[str], seed: int) -> None:
    rng = random.Random(seed)
    for operation in OPERATIONS:
        for name, fault in FAULTS.items():
            if operation not in WITHOUT_BODY or "body" not in name:
                faults.add(operation, fault, times=1000, every=rng.choice([7, 11, 13, 17]))
    check(s3, faults, sources)
