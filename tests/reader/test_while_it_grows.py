"""Law: a reader that opens an output while it is written, sealed and killed sees whole committed rows and no others."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import latentmill
from tests.reader.made import shard_names, write_output
from tests.small import LATENT

ROOT = Path(__file__).parents[2]
SHARDS = 12

WRITER = """
import sys
from pipeline.output.commit import seal
from pipeline.storage import Storage
from tests.reader.made import shard_names, write_shard
from tests.small import spec
from dataclasses import replace
from tests.small import LATENT
where, format_, order = sys.argv[1], sys.argv[2], list(map(int, sys.argv[3].split(",")))
output, made = Storage(where), spec(latent=replace(LATENT, format=format_))
names = shard_names(len(order))
for number in order:
    if not output.exists(f"data/{names[number]}.parquet"):
        write_shard(output, made, names[number], 8)
    done = [name for name in names if output.exists(f"data/{name}.parquet")]
    print(number, flush=True)
    if number % 3 == 0:
        seal(output, done)
seal(output, names)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["parquet", "npy"])
def test_every_open_sees_whole_committed_rows(tmp_path: Path, format_: str) -> None:
    """The writer commits shards in any order, seals now and then, and is killed three times; others clean up."""
    rule = replace(LATENT, format=format_)  # type: ignore[arg-type]
    write_output(tmp_path / "whole", SHARDS, 8, rule)
    whole = latentmill.open(tmp_path / "whole")
    true = {whole.facts([i])["id"][0]: whole[i]["latent"] for i in range(len(whole))}
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / "spec.json", out)
    rng = random.Random(0)
    order = rng.sample(range(SHARDS), SHARDS)
    seen: set[int] = set()
    for life in range(4):
        command = [sys.executable, "-c", WRITER, str(out), format_, ",".join(map(str, order))]
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        lines = 0
        while writer.poll() is None:
            if life < 3 and lines == 3 * (life + 1):
                writer.kill()
                break
            if life < 3:
                lines += bool(writer.stdout.readline())
            try:
                latents = latentmill.open(out)
            except latentmill.OpenError as error:
                assert "holds no committed row yet" in str(error)  # noqa: PT017 (any other is a failure)
            else:
                seen.add(len(latents))
                assert len(latents) % 8 == 0
                check(latents, true, rng)
        writer.communicate()
    assert writer.returncode == 0
    final = latentmill.open(out)
    assert final.digest == whole.digest
    assert len(seen) > 3
    assert sorted(path.stem for path in (out / "data").glob("*.parquet")) == shard_names(SHARDS)


def check(latents: latentmill.LatentDataset, true: dict[str, torch.Tensor], rng: random.Random) -> None:
    ids = latents.facts(range(len(latents)))["id"]
    assert len(set(ids)) == len(ids)
    assert ids == [id_ for id_ in true if id_ in set(ids)]  # in the order of the whole
    for position in rng.sample(range(len(ids)), 5):
        assert torch.equal(latents[position]["latent"], true[ids[position]])
