"""Law: the installed command works in any working folder. Packages there that are named as ours are touched by nobody:
not by the driver, nor by a worker of Ray, nor by the child in which a clip is tried alone. A training repository on
PYTHONPATH with a `jobs.py`, a `vae/` and a `pipeline/` of its own hides none of ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

import pipeline
from pipeline.control.ray_cluster import _job_config
from pipeline.guard.alone import alone
from tests.test_run import make_tar
from tests.videos import make_video

ROOT = Path(__file__).parents[1]
OURS = ("vae", "pipeline", "jobs", "latentmill", "tests")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose packages raise when they are imported."""
    for name in OURS:
        (tmp_path / "cwd" / name).mkdir(parents=True)
        (tmp_path / "cwd" / name / "__init__.py").write_text("raise RuntimeError('the package of the working folder')")
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


def test_a_clip_tried_alone(hostile: Path) -> None:
    assert alone(300, os.getcwd) == str(hostile / "cwd")


def test_workers_look_where_the_driver_found_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    config = _job_config()
    assert config is not None
    root = Path(pipeline.__file__).parents[1]
    assert config._py_driver_sys_path in ([], [str(root)])


@pytest.mark.slow
def test_every_command(hostile: Path) -> None:
    command = shutil.which("latentmill", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("the command is not installed beside this Python")
    make_tar(hostile / "a.tar", {"a": make_video(num_frames=60, width=96, height=64)})
    output = ["--output", "../out"]
    size = ["--vae", "tiny", "--num-frames", "9", "--height", "64", "--width", "96"]
    environment = os.environ | {"RAY_TMPDIR": tempfile.mkdtemp(prefix="lm")}  # sockets in it: paths have a limit
    for arguments in (["encode", "--source", "../a.tar", *output, *size], ["status", *output], ["verify", *output]):
        done = subprocess.run([command, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert "1 latents" in done.stdout


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A repository whose names are ours."""
    folder = tmp_path / "training"
    for package in ("vae", "pipeline"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("raise RuntimeError('the package of the training repository')")
    (folder / "jobs.py").write_text("raise RuntimeError('the module of the training repository')")
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point as pip writes it, with this folder first on PYTHONPATH."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["latentmill"]
    module, _, function = entry.partition(":")
    script = [sys.executable, "-P", "-c", f"import sys; from {module} import {function}; sys.exit({function}())"]
    environment = os.environ | {"PYTHONPATH": f".{os.pathsep}{ROOT}", "RAY_TMPDIR": str(folder.parent)}
    return subprocess.run(
        [*script, *arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_training_repository_on_the_path_does_not_hide_our_packages(training: Path) -> None:
    for arguments in (["encode", "--help"], ["vae", "--help"]):
        done = command(training, *arguments)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_nor_from_the_workers_of_ray(training: Path) -> None:
    make_tar(training.parent / "a.tar", {"a": make_video(num_frames=60, width=96, height=64)})
    size = ["--vae", "tiny", "--num-frames", "9", "--height", "64", "--width", "96"]
    done = command(training, "encode", "--source", "../a.tar", "--output", "../out", *size)
    assert done.returncode == 0, done.stderr
    assert "latents   1 " in done.stdout
