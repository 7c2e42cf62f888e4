"""`latentmill text` as the work of the chaos: an output of small shards, a small T5, and the laws of a text."""

from __future__ import annotations

import io
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from latentmill import format
from tests.chaos.lab import Lab, LawBrokenError
from tests.chaos.laws import Files, Findings, Verdicts, local_paths
from tests.chaos.scenarios import KILLS_PER_OUTPUT, OK, Result, moment, resume, watched
from tests.chaos.work import Work

NAME = "t5"
NUM_SHARDS, CLIPS = 16, 8
LATE = 6
"""Shards that the output has only later, when it grows."""


def _make(folder: Path, seed: int) -> tuple[dict[str, Any], Files]:
    from tests.reader.made import write_output
    from tests.text.checkpoints import checkpoint

    del seed  # moments are random; captions need not be
    encoder, output = checkpoint(folder / "encoder"), folder / "given"
    write_output(output, NUM_SHARDS, CLIPS, is_sealed=False)
    return {"encoder": str(encoder)}, {path: (output / path).read_bytes() for path in local_paths(output)}


def _check(files: Files, expected: Files, verdicts: Verdicts, paths: list[str]) -> Findings:
    """Each row of each shard has one embedding, with the bytes of the undisturbed run, and nothing else is left."""
    found = Findings()
    if files.keys() != expected.keys():
        found.broken.append(f"text/ holds {sorted(files)}, expected {sorted(expected)}")
    rows, wanted = _ids(files), _ids(expected)
    found.lost = len(wanted.keys() - rows.keys())
    found.twice = sum(rows.values()) - len(rows)
    found.broken += [
        f"{name}: {len(data)} bytes differ from the undisturbed run's {len(expected[name])}"
        for name, data in files.items()
        if name in expected and data != expected[name]
    ]
    texts = {path.rpartition("/")[2] for path in paths if path.startswith("data/")} | {f"{format.EMPTY}.parquet"}
    if files.keys() != texts:
        found.broken.append(f"the text of {sorted(texts ^ files.keys())} is missing, or of no shard")
    found.broken += [f"left behind: {path}" for path in paths if path.startswith(("_staging/", "_claims/"))]
    for path in (format.text_spec_path(NAME), f"{format.text_of(NAME)}runs/"):
        if not any(one.startswith(path) for one in paths):
            found.broken.append(f"no {path}")
    return found


def _ids(files: Files) -> Counter[str]:
    """How often each row has an embedding that can be read."""
    tables = (pq.read_table(io.BytesIO(data), columns=["id", "embedding_row"]) for data in files.values())
    return Counter(row["id"] for table in tables for row in table.to_pylist() if row["embedding_row"] is not None)


TEXT = Work(
    runner="tests.chaos.text_runner",
    folder=format.text_of(NAME),
    writes=(f"{format.text_of(NAME)}0",),
    rate="captions/s",
    most_new=NUM_SHARDS,
    make=_make,
    check=_check,
)
"""`latentmill text`."""


def growth(lab: Lab, result: Result, kills: int) -> None:
    """The output grows while its text is made, and the driver is killed: every run goes on with what is there."""
    rng, whole = lab.rng("growth"), lab.given
    shards = sorted(path for path in whole if path.startswith("data/"))[-LATE:]
    late = [path for path in whole if Path(path).name in {Path(shard).name for shard in shards}]
    while result.kills < kills:
        lab.given = {path: data for path, data in whole.items() if path not in late}
        try:
            with watched(lab, result) as output:
                for number in range(KILLS_PER_OUTPUT):
                    run = lab.start(output)
                    killed = moment(lab, run, output, rng)
                    for path in sorted(late, key=lambda path: path.startswith("index/"))[2 * number : 2 * number + 2]:
                        (output / "new").write_bytes(whole[path])
                        (output / "new").rename(output / path)
                    killed = killed and rng.random() < 0.7 and run.signal(signal.SIGKILL)
                    result.kills += killed
                    if run.end() not in (OK, -signal.SIGKILL):
                        raise LawBrokenError(f"a run did not end well:\n{run.tail()}")
                resume(lab, result, output)
        finally:
            lab.given = whole
