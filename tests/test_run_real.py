"""Law: a tar of real and awkward videos gives a latent or a reasoned rejection for every file, and none is rejected
that a full decode called sound. Neither a hang nor a crash comes of files with flipped, cut and spliced bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.run import run
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job
from pipeline.storage import Storage
from pipeline.verify.whole import verify
from tests.decode.fuzz import mutated
from tests.test_run import make_tar

pytest_plugins = ["tests.local_ray"]


@pytest.mark.slow
def test_every_real_file_is_a_latent_or_a_reasoned_rejection(local_ray: None, shared: Path, tmp_path: Path) -> None:
    manifest = json.loads((shared / "videos/MANIFEST.json").read_text())["files"]
    files = {entry["file"]: (shared / "videos" / entry["file"]).read_bytes() for entry in manifest}
    assert len(files) == 67
    names = {name.replace(".", "_"): name for name in files}  # a WebDataset key ends at the first dot
    make_tar(tmp_path / "real.tar", {key: files[name] for key, name in names.items()})
    clip = ClipRule(num_frames=5, height=32, width=48, short="trim", max_pixels=8192 * 4320)
    summary = run(Job(source=(str(tmp_path / "real.tar"),), output=str(tmp_path / "out"), vae="tiny", clip=clip))

    assert summary.open_shards == {}
    (path,) = (tmp_path / "out/data").iterdir()
    file = pq.ParquetFile(path)
    latents = {names[key] for key in file.read(["key"])["key"].to_pylist()}
    footer = json.loads(file.metadata.metadata[b"latentmill.shard"])
    rejected = {names[rejection["key"]]: rejection["reason"] for rejection in footer["rejections"]}
    assert latents | rejected.keys() == set(files)
    assert not latents & rejected.keys()
    sound = {entry["file"] for entry in manifest if is_sound(entry)}
    assert {name: reason for name, reason in rejected.items() if name in sound} == {}


NUM_TARS, PER_TAR = 21, 100


@pytest.mark.slow
def test_two_thousand_mutated_files_end_once_each_and_none_kills_its_worker(local_ray: None, tmp_path: Path) -> None:
    rng = random.Random(5)
    for tar in range(NUM_TARS):
        make_tar(tmp_path / f"{tar:02}.tar", {f"{tar:02}/{n:02}": mutated(rng) for n in range(PER_TAR)})
    clip = ClipRule(num_frames=5, height=32, width=48, clips="all", max_clips=2, max_pixels=1 << 20)
    summary = run(Job(source=(f"{tmp_path}/*.tar",), output=str(tmp_path / "out"), vae="tiny", clip=clip))

    assert summary.open_shards == {}
    assert summary.planned == summary.latents + sum(summary.rejected.values())
    assert not summary.rejected.keys() & {"decode_crashed", "decode_timeout", "encode_crashed", "encode_timeout"}
    assert len(summary.rejected) > 4
    ended = set(pq.read_table(tmp_path / "out/data", columns=["key"])["key"].to_pylist())
    assert len(ended) > NUM_TARS * PER_TAR // 10
    for path in (tmp_path / "out/rejected").iterdir():
        ended |= {json.loads(line)["key"] for line in path.read_text().splitlines()}
    assert ended == {f"{tar:02}/{n:02}" for tar in range(NUM_TARS) for n in range(PER_TAR)}
    assert [problem for checked in verify(Storage(str(tmp_path / "out"))) for problem in checked.problems] == []


def is_sound(entry: dict[str, object]) -> bool:
    """Decoded to the end without an error or a frame flagged corrupt, and not cut off (WebM raises nothing then)."""
    if "truncated" in str(entry.get("notes")):
        return False
    clean = entry.get("decode_error") is None and not entry.get("frames_flagged_corrupt")
    return clean and bool(entry.get("frames_decoded"))
