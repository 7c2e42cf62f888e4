"""Law: the same source and Spec give the same bytes in `data/`, also after the code has changed.

The digests were recorded from the code as it is released. A change that makes one of them fail changes what stands in
outputs, and needs a new format version (see CONTRIBUTING.md). The encoder is replaced by one of whole numbers, so that
the digests hold on every machine; the arithmetic of the real one is held against golden data in tests/vae.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.guard.strikes import Strikes
from pipeline.output.commit import commit
from pipeline.output.parts import stage
from pipeline.output.spec_file import write_spec
from pipeline.plan.frozen import make_plan
from pipeline.receipts import Receipt
from pipeline.records import Chunk, Latent, Video
from pipeline.runs.ledger import Ledger
from pipeline.settings.spec import Spec
from pipeline.stages.decode_video import Decoder
from pipeline.stages.read_shard import read_shard
from pipeline.storage import Storage
from tests.s3 import S3
from tests.small import CLIP, LATENT
from tests.sources import make_tar
from vae.info import VAEInfo

pytest_plugins = ["tests.s3"]

pytestmark = pytest.mark.slow

DIGESTS = {
    (1, "files"): "2bc4e7cecd46c3fcb0a9f62866c399f9dcc2982fa23c63b57ccf54cd80bb81da",
    (1, "tar"): "3e4b2e6694b7f9cbab11c4cc5cafe10479c15a55038272ea68e9ae658116f0cd",
    (2, "files"): "67bda8b776ccc84df7c43b8268d22b9fbefdd0efa3cd0225f6df221a1b7d918a",
    (2, "tar"): "f86c426c0929ed40af183796fee4296f4ef13993a820fba75b338b628fcc5602",
}
"""By format version and kind of source: sha256 over the data files of an output, in the order of their names."""


VAE = VAEInfo(
    name="tiny-untrained",
    config={
        "ch": 32,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "in_channels": 3,
        "resolution": 256,
        "z_channels": 16,
        "double_z": True,
        "pad_mode": "first",
        "temporal_compress_times": 4,
    },
    weights_sha256="2829e55a7b3bcb934e8cda25c78100017367954bb87706be66cbfc46fee662f3",
    in_channels=3,
    latent_channels=16,
    time_compression=4,
    space_compression=8,
    scale=1.0,
    shift=0.0,
    schedule="batched8",
    windowed=True,
)
"""The VAE that the Spec of the recorded outputs names. It is not that of `tiny`, which changes with its weights."""


class WholeNumberEncoder:
    """Sums of 8x8 pixel blocks of every fourth frame: exact on every machine."""

    def __call__(self, chunk: Chunk) -> Latent:
        frames = chunk.frames[sum(chunk.windows[: chunk.num_context]) :: 4].astype(np.uint16)
        blocks = frames.reshape(len(frames), frames.shape[1] // 8, 8, frames.shape[2] // 8, 8, 3).sum((2, 4))
        latent = np.ascontiguousarray(blocks.transpose(3, 0, 1, 2)).astype("<u2")
        return Latent(
            id=chunk.id,
            payload=latent.tobytes(),
            shape=latent.shape,
            dtype="bfloat16",
            facts=chunk.facts,
        )


@pytest.mark.parametrize(("version", "kind"), DIGESTS)
def test_the_bytes_are_those_that_were_recorded(version: int, kind: str, s3: S3, shared: Path, tmp_path: Path) -> None:
    if not (shared / "videos").is_dir():
        pytest.skip("the folder of real videos is not here")
    s3.client.create_bucket(Bucket="same-bytes")  # the address of a source stands in its rows
    bucket = replace(s3, bucket="same-bytes")
    source = _put_source(bucket, kind, shared / "videos")
    assert _digest(_encode(source, tmp_path, version)) == DIGESTS[version, kind]


def _put_source(bucket: S3, kind: str, videos: Path) -> str:
    files = sorted(path for path in videos.iterdir() if path.suffix not in {".json", ".md"})
    if kind == "tar":
        chosen = [(path.name, path.read_bytes()) for path in files if path.stat().st_size < 300_000]
        return bucket.put("tar/all.tar", make_tar(chosen))
    for path in files:
        bucket.put(f"files/{path.name}", path.read_bytes())
    return bucket.uri("files/")


def _encode(source: str, where: Path, version: int) -> Storage:
    clip = replace(CLIP, clips="all", max_clips=3, times="as_stored")
    output, rule = Storage(str(where)), Spec(vae=VAE.to_json(), clip=clip, latent=LATENT, format_version=version)
    write_spec(output, rule)
    decoder = Decoder(clip=clip, latent=LATENT, info=VAEInfo(**rule.vae), deadline=600)
    encoder = WholeNumberEncoder()
    for shard in make_plan(output, [source]).remaining():
        ledger = Ledger()
        for read in read_shard(shard):
            for record in decoder(read, Strikes()) if isinstance(read, Video) else [read]:
                receipt = stage(encoder(record) if isinstance(record, Chunk) else record, output)
                assert isinstance(receipt, Receipt)
                if complete := ledger.add(receipt):
                    assert not commit(output, rule.to_json(), complete).missing
    return output


def _digest(output: Storage) -> str:
    digest = hashlib.sha256()
    paths = sorted(entry.path for entry in output.list("data/"))
    assert paths
    for path in paths:
        digest.update(output.read(path))
    return digest.hexdigest()
