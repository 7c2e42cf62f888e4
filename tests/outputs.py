"""A whole output made without Ray: the stages of the job called one after the other."""

from __future__ import annotations

from pathlib import Path

from pipeline.chunks import Decoder
from pipeline.clips import ClipRule
from pipeline.commit import commit, seal
from pipeline.encode import Encoder
from pipeline.guard import Strikes
from pipeline.ledger import Ledger
from pipeline.parts import stage
from pipeline.plan import make_plan
from pipeline.progress import Summary
from pipeline.records import Chunk, Receipt, Record, Shard, Video
from pipeline.runs import environment, record
from pipeline.sources import read_shard
from pipeline.spec import LatentRule, settle
from pipeline.storage import Storage
from tests.small import CLIP, LATENT, spec
from vae.info import VAEInfo


def make_output(
    source: str | Path, where: str | Path, clip: ClipRule = CLIP, latent: LatentRule = LATENT, limit: int | None = None
) -> Storage:
    """Encode everything at `source` into an output at `where`, as a job with one thread does; sealed and recorded."""
    output, rule = Storage(str(where)), spec(clip, latent)
    settle(output, rule)
    decoder = Decoder(clip=clip, latent=latent, info=VAEInfo(**rule.vae), deadline=60)
    encoder = Encoder("tiny", rule)
    plan = make_plan(output, [str(source)])
    shards = list(plan.remaining())
    for shard in shards[:limit]:
        _encode_shard(output, shard, decoder, encoder, rule.to_json())
    done = sorted(shard.name for shard in shards[:limit])
    seal(output, done)
    summary = Summary(
        planned_shards=len(shards), done_shards=len(done), planned=0, latents=0, rejected={}, latent_bytes=0
    )
    record(output, "run", rule.digest, environment("cpu", 1), summary)
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
