"""A whole output made without Ray: the stages of the job called one after the other; and a tool to damage it."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentmill import format
from pipeline.control.summary import Summary
from pipeline.guard.strikes import Strikes
from pipeline.output.commit import commit, derive, seal
from pipeline.output.parts import stage
from pipeline.output.spec_file import check, write_spec
from pipeline.output.statistics import statistics
from pipeline.plan.frozen import make_plan
from pipeline.receipts import Receipt, Record
from pipeline.records import Chunk, Video
from pipeline.runs.ledger import Ledger
from pipeline.runs.run_records import RunRecord, environment
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job
from pipeline.settings.spec import LatentRule
from pipeline.shards import Shard
from pipeline.stages.decode_video import Decoder
from pipeline.stages.encode_chunk import Encoder
from pipeline.stages.read_shard import read_shard
from pipeline.storage import Storage
from tests.small import CLIP, HEALTHY, LATENT, spec
from vae.info import VAEInfo

CLIPS = replace(CLIP, clips="all")
Rows = list[dict[str, Any]]


def make_output(
    source: str | Path,
    where: str | Path,
    clip: ClipRule = CLIP,
    latent: LatentRule = LATENT,
    limit: int | None = None,
    version: int = format.FORMAT_VERSION,
    normalisation: dict[str, Any] | None = None,
    vae: str = "tiny",
) -> Storage:
    """Encode everything at `source` into an output at `where`, as a job with one thread does; sealed and recorded.

    `normalisation` changes fields of the VAE in the Spec; None leaves one out, as an earlier version did.
    """
    output = Storage(str(where))
    rule = replace(spec(clip, latent, vae), format_version=version)
    changed = {name: value for name, value in (rule.vae | (normalisation or {})).items() if value is not None}
    rule = check(output, replace(rule, vae=changed))
    write_spec(output, rule)
    decoder = Decoder(clip=rule.clip, latent=latent, info=VAEInfo(**rule.vae), deadline=HEALTHY)
    encoder = Encoder(vae, rule)
    plan = make_plan(output, [str(source)])
    shards = list(plan.remaining())
    for shard in shards[:limit]:
        _encode_shard(output, shard, decoder, encoder, rule.to_json())
    done = sorted(shard.name for shard in shards[:limit])
    seal(output, done)
    summary = Summary(
        planned_shards=len(shards), done_shards=len(done), planned=0, latents=0, rejected={}, latent_bytes=0
    )
    job = Job(source=(str(source),), output=str(where), vae=vae, clip=clip, latent=latent)
    record = RunRecord(job=job, run_id="run", spec_digest=rule.digest, began=datetime.now(UTC))
    record.start(output, environment("cpu", job.workers.threads_per_encoder))
    record.put(output, summary)
    return output


def _encode_shard(output: Storage, shard: Shard, decoder: Decoder, encoder: Encoder, rule: str) -> None:
    ledger = Ledger()
    for read in read_shard(shard):
        decoded: list[Record] = list(decoder(read, Strikes())) if isinstance(read, Video) else [read]
        for one in decoded:
            receipt = stage(encoder(one) if isinstance(one, Chunk) else one, output)
            assert isinstance(receipt, Receipt)
            if complete := ledger.add(receipt):
                assert not commit(output, rule, complete).missing
                return
    raise AssertionError(ledger.still_open())


def shard(out: Path, stem: str = "one") -> str:
    (path,) = (out / "data").glob(f"{stem}-*.parquet")
    return path.stem


def rewrite(out: Path, name: str, change: Callable[[Rows, dict[str, Any]], object]) -> None:
    """Write the data file of a shard again with other rows or another footer, and derive the rest from it."""
    path = out / "data" / f"{name}.parquet"
    rows = pq.read_table(path).to_pylist()
    spec, footer = format.footer_of(io.BytesIO(path.read_bytes()))
    change(rows, footer)
    with pq.ParquetWriter(path, format.SCHEMA, compression={"latent": "none"}, use_dictionary=False) as writer:
        for row in rows:
            writer.write_table(pa.Table.from_pylist([row], format.SCHEMA))
        footer_text = json.dumps(footer)
        writer.add_key_value_metadata({format.FOOTER_SPEC: spec, format.FOOTER_SHARD: footer_text})
    derive(Storage(str(out)), name)
    seal(Storage(str(out)), sorted(file.stem for file in (out / "data").glob("*.parquet")))


def replace_latent(row: dict[str, Any], latent: bytes) -> None:
    """Give a row another latent with all that follows from it: checksum and statistics."""
    row.update(latent=latent, latent_crc32=zlib.crc32(latent))
    row.update(statistics(latent, row["latent_dtype"], tuple(row["latent_shape"])))


def only_parquet(out: Path) -> None:
    if list((out / "data").glob("*.npy")):
        pytest.skip("of the column in the data file")
