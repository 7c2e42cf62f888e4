"""The CUDA branch with a CUDA build of torch, on fake tensors: what `on_fake_cuda.py` states, in an environment of its
own. `LATENTMILL_CUDA_PYTHON` names a Python that has such a build, numpy, safetensors and pytest; otherwise they are
installed, which takes about 4 GB for a while.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NEEDED_BYTES = 12e9
"""The build, and what pip unpacks beside it."""


@pytest.fixture
def python() -> Iterator[Path]:
    """A Python with a CUDA build of torch. Skips where none can be had."""
    if named := os.environ.get("LATENTMILL_CUDA_PYTHON"):
        yield Path(named)
    elif torch.version.cuda is not None:
        yield Path(sys.executable)
    else:
        with tempfile.TemporaryDirectory() as folder:  # not pytest's, which stays
            yield installed(Path(folder))


def installed(folder: Path) -> Path:
    if shutil.disk_usage(folder).free < NEEDED_BYTES:
        pytest.skip(f"a CUDA build of torch needs {NEEDED_BYTES / 1e9:.0f} GB of disk for a while")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    release = torch.__version__.partition("+")[0]
    wanted = [f"torch==={release}", "numpy", "safetensors", "pytest"]  # === takes no build with a local version
    install = [str(folder / "env/bin/pip"), "install", "--quiet", "--no-cache-dir", *wanted]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a CUDA build of torch cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder / "env/bin/python"


@pytest.mark.slow
def test_the_cuda_branch_on_fake_tensors(python: Path) -> None:
    command = [str(python), "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "tests/vae/on_fake_cuda.py"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if "needs a CUDA build of torch" in done.stdout or done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED:
        assert "LATENTMILL_CUDA_PYTHON" not in os.environ, f"{python} has no CUDA build of torch"
        pytest.skip("the build of torch that pip chose has no CUDA")
    assert done.returncode == 0, done.stdout
    assert not re.search("skipped|no tests", done.stdout), done.stdout
