"""Law: the trainers' own dataset classes, samplers and collate functions give our tensors, bit for bit.

LATENTMILL_TRAINERS names a folder with a checkout of each trainer: Automodel, LTX-2, FastVideo, musubi-tuner, CogVideo;
or a trainer is importable. Their own requirements, as far as these classes need them, must be importable, too:

    pip install --no-deps einops torchdata accelerate opencv-python-headless toml voluptuous cloudpickle imageio \
        remote-pdb rich
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import latentmill
from tests.exports.made import MEAN, ROOM, STD, embedding_of, rows_of
from tests.exports.own_classes.script import NOT_HERE
from tests.exports.test_trainers import SIZES, exported, padded
from tests.small import LATENT

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "own_classes"
CHECKOUTS = {
    "automodel": ("Automodel", "nemo_automodel"),
    "ltx": ("LTX-2", "ltx_trainer"),
    "fastvideo": ("FastVideo", "fastvideo"),
    "musubi": ("musubi-tuner", "musubi_tuner"),
    "cogvideo": ("CogVideo", "finetune"),
}


def read_by(trainer: str, into: Path, tmp_path: Path) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """Return the trainer's counts, and the clips of its batches by id; every clip comes in exactly one batch."""
    folder, package = CHECKOUTS[trainer]
    root = Path(os.environ.get("LATENTMILL_TRAINERS", "nowhere"), folder)
    if not root.is_dir() and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: a checkout in $LATENTMILL_TRAINERS/{folder}, or installed")
    command = [sys.executable, str(SCRIPTS / f"{trainer}.py"), str(root), str(into), str(tmp_path / "out.pt")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path, env=environment)
    if done.returncode == NOT_HERE:
        pytest.skip(f"{package} lacks a requirement: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr[-3000:]
    read = torch.load(tmp_path / "out.pt", weights_only=False)
    clips: dict[str, dict[str, Any]] = {}
    for ids, batch in read["batches"]:
        for number, id in enumerate(ids):
            assert id not in clips
            clips[id] = _of(batch, number, len(ids))
    return read["buckets"], clips


def _of(batch: dict[str, Any], number: int, size: int) -> dict[str, Any]:
    """One clip of a batch: the row of every tensor or list that has one row a clip."""
    clip: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            clip[name] = _of(value, number, size)
        elif isinstance(value, torch.Tensor | list) and len(value) == size:
            clip[name] = value[number]
    return clip


def test_automodel(tmp_path: Path) -> None:
    into, summary = exported(tmp_path, "automodel", SIZES)
    buckets, clips = read_by("automodel", into, tmp_path)
    rows = rows_of(tmp_path / "out")
    assert buckets == summary.counts
    assert clips.keys() == rows.keys()
    for id, row in rows.items():
        assert torch.equal(clips[id]["video_latents"], row["latent"])
        assert clips[id]["video_latents"].dtype == torch.bfloat16
        assert torch.equal(clips[id]["text_embeddings"], padded(embedding_of(row["caption"]), 6))


@pytest.mark.parametrize("reader", ["ltx", "fastvideo"])
def test_ltx(tmp_path: Path, reader: str) -> None:
    into, summary = exported(tmp_path, "ltx")
    buckets, clips = read_by(reader, into, tmp_path)
    rows = rows_of(tmp_path / "out")
    assert buckets == {"all": summary.num_clips} == {"all": 8}
    assert clips.keys() == rows.keys()
    for id, row in rows.items():
        latents, conditions, text = clips[id]["latents"], clips[id]["conditions"], embedding_of(row["caption"], ROOM)
        assert torch.equal(latents["latents"], row["latent"])
        assert [int(latents[name]) for name in ("num_frames", "height", "width")] == list(row["latent"].shape[1:])
        assert float(latents["fps"]) == row["fps"]
        assert torch.equal(conditions["video_prompt_embeds"], padded(text, ROOM, left=True))
        assert int(conditions["prompt_attention_mask"].sum()) == len(text)
        assert conditions["prompt_attention_mask"][-len(text) :].all()


def test_fastvideo(tmp_path: Path) -> None:
    into, summary = exported(tmp_path, "fastvideo")
    buckets, clips = read_by("fastvideo", into, tmp_path)
    rows = rows_of(tmp_path / "out")
    assert buckets == {"all": summary.num_clips} == {"all": 8}
    assert clips.keys() == rows.keys()
    mean, std = (torch.tensor(values * 4).view(-1, 1, 1, 1) for values in (MEAN, STD))
    for id, row in rows.items():
        assert torch.equal(clips[id]["vae_latent"], row["latent"].float() / (1 / std.double()).float() + mean)
        # What the trainer's normalize_dit_input makes of it is our scaled latent again.
        assert torch.equal(((clips[id]["vae_latent"] - mean) * (1 / std)).bfloat16(), row["latent"])
        text = embedding_of(row["caption"]).float()
        assert torch.equal(clips[id]["text_embedding"], padded(text, 6))
        assert int(clips[id]["text_attention_mask"].sum()) == len(text)
        assert clips[id]["caption_text"] == row["caption"]


def test_musubi(tmp_path: Path) -> None:
    into, summary = exported(tmp_path, "musubi", (*SIZES, (3, 2, 4), (2, 4, 4), (2, 4, 8)), clips=10)
    buckets, clips = read_by("musubi", into, tmp_path)
    rows = rows_of(tmp_path / "out")
    assert buckets == summary.counts
    assert len(buckets) == 5
    assert clips.keys() == rows.keys()
    for id, row in rows.items():
        assert torch.equal(clips[id]["latents"], row["latent"])
        assert torch.equal(clips[id]["t5"], embedding_of(row["caption"]))


def test_cogvideo(tmp_path: Path) -> None:
    into, summary = exported(tmp_path, "cogvideo", rule=replace(LATENT, posterior="moments"))
    buckets, clips = read_by("cogvideo", into, tmp_path)
    assert buckets == {"all": summary.num_clips} == {"all": 8}
    latents = latentmill.open(tmp_path / "out").posterior("sample")
    rows = {row["id"]: row for row in (dict(latents[i]) for i in range(8))}
    assert clips.keys() == rows.keys()
    for id, row in rows.items():
        assert torch.equal(clips[id]["encoded_video"], row["latent"])
        assert torch.equal(clips[id]["prompt_embedding"], padded(embedding_of(row["caption"]), 6))
