"""Law: the example's path holds from videos to a trainer: the loss of a toy model falls on what Automodel reads."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import vae
from examples.train_from_export import toy_vae
from pipeline.export.families import WAN_21, foreign_scaling

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_loss_falls_on_an_export(tmp_path: Path) -> None:
    checkout = Path(os.environ.get("LATENTMILL_TRAINERS", "nowhere"), "Automodel")
    if not checkout.is_dir() and importlib.util.find_spec("nemo_automodel") is None:
        pytest.skip("needs nemo_automodel: a checkout in $LATENTMILL_TRAINERS/Automodel, or installed")
    for package in ("diffusers", "transformers", "torchdata"):
        pytest.importorskip(package)
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{checkout}",
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="lm", dir="/tmp"),
    }
    done = subprocess.run(
        [sys.executable, "examples/train_from_export.py", "--work", str(tmp_path / "toy")],
        capture_output=True, text=True, cwd=ROOT, timeout=500, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = (float(re.findall(rf"loss {when} ([\d.]+)", done.stdout)[0]) for when in ("before", "after"))
    assert after < 0.95 * before
    assert len(re.findall(r"^step \d loss", done.stdout, re.M)) == 3
    counts = re.findall(r"^wide/96x64 +(\d+)", done.stdout, re.M)
    metadata = json.loads((tmp_path / "toy/automodel/metadata.json").read_text())
    assert counts == ["7"]
    assert metadata["total_items"] == 7


def test_a_wan_vae_of_diffusers_is_known_as_one(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    made = vae.load_vae(toy_vae(tmp_path / "vae")).info.to_json()
    assert WAN_21.has_made(made)
    assert foreign_scaling(made, WAN_21) is None
    assert foreign_scaling(made | {"scale": 1.0}, WAN_21)
