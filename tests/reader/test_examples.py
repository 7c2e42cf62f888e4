"""Law: the examples do what they say: the loss falls, two processes resume after a kill, others read the same files."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

import latentmill
from tests.reader.made import write_output
from tests.small import LATENT

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 rows of three shapes."""
    where = tmp_path_factory.mktemp("examples") / "out"
    write_output(where, 4, 60, replace(LATENT, store_dtype="float32"))
    return where


def python(arguments: list[Any], cwd: Path = ROOT) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def descendants(pid: int) -> list[int]:
    """Of a process: torchrun gives each of its own a session, so a group does not name them."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [one for child in children for one in (child, *descendants(child))]


def losses(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"loss ([\d.]+)", text)]


def keys(text: str) -> list[str]:
    return [key for line in text.splitlines() if "loss" in line for key in line.split()[4:]]


def test_the_loss_falls_over_an_epoch(rows: Path, tmp_path: Path) -> None:
    shown = python(["examples/train.py", "--output", rows, "--checkpoint", tmp_path / "c.pt"])
    found = losses(shown)
    assert len(found) == 120
    assert mean(found[-30:]) < 0.85 * mean(found[:30])
    assert len(set(keys(shown))) == 240


def test_two_processes_are_killed_and_resumed_by_one(rows: Path, tmp_path: Path) -> None:
    """What was seen before the last checkpoint and after it is the epoch of a run that nobody killed."""
    command = ["examples/train.py", "--output", str(rows), "--checkpoint", str(tmp_path / "c.pt")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [sys.executable, *TORCHRUN, *command, "--epochs", "1000"],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert first.stdout
    for line in first.stdout:
        if "loss" in line and (tmp_path / "c.pt").exists():
            for pid in [first.pid, *descendants(first.pid)]:
                os.kill(pid, signal.SIGKILL)
            break
    first.communicate()
    saved = torch.load(tmp_path / "c.pt", weights_only=True)["loader"]
    resumed = python([*command, "--epochs", saved["epoch"] + 1])
    assert f"resumed at epoch {saved['epoch']}, batch {saved['batches']}" in resumed
    left = latentmill.open(rows).loader(batch_size=2, drop_last="wrap")
    left.load_state_dict(saved)
    assert keys(resumed) == [key for batch in left for key in batch["key"]]


def test_accelerate(rows: Path) -> None:
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed")
    shown = python(["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu",
                    "examples/train_accelerate.py", "--output", rows])  # fmt: skip
    found = losses(shown)
    assert mean(found[-30:]) < 0.85 * mean(found[:30])


@pytest.mark.parametrize("name", ["pyarrow", "datasets", "polars", "duckdb"])
def test_others_read_the_same_files(rows: Path, name: str) -> None:
    shown = python(["examples/other_readers.py", "--output", rows])
    if importlib.util.find_spec(name) is None:
        assert f"{name}: not installed" in shown
        pytest.skip(f"{name} is not installed")
    first = latentmill.open(rows)[0]
    want = f"{name}: 240 rows, {first['id']} {tuple(first['latent'].shape)} torch.float32"
    assert f"{want} sum {first['latent'].sum():.4f}" in shown
