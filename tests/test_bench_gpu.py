"""The bench of a GPU, without one: what it needs, that every part runs, and that its table fits the README."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.bench import gpu
from jobs.bench.gpu_device import Timer
from vae.engines import engines, make_deterministic

ROOT = Path(__file__).parents[1]

ONLY = """
import sys
sys.modules["diffusers"] = None
from jobs.bench import gpu
code = gpu.main(["--tiny"])
print("needs", sorted({"ray", "av", "pyarrow", "tyro", "fsspec", "pipeline", "latentmill"} & set(sys.modules)))
raise SystemExit(code)
"""


def test_it_imports_neither_ray_nor_av() -> None:
    check = ONLY.replace('code = gpu.main(["--tiny"])', "code = 0")
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.stdout.strip() == "needs []", done.stderr


@pytest.mark.slow
def test_every_part_runs_without_them() -> None:
    done = subprocess.run([sys.executable, "-c", ONLY], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines.pop() == "needs []"
    table = [line for line in lines if line.startswith("|")]
    assert all(len(line) <= gpu.WIDTH and line.endswith("|") for line in table)
    for part in (
        "matrix product",
        "float16",
        "clip 17x16x24",
        "level 3",
        "device idle",
        "equal bytes",
        "not installed",
    ):
        assert any(part in line for line in table), part


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert gpu.main([]) == 2
    assert "no GPU is here" in capsys.readouterr().err


def test_a_part_that_fails_is_a_row_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = gpu.Bench(gpu.TINY, torch.device("cpu"))
    monkeypatch.setattr(gpu, "MOST_SECONDS", -1.0)
    assert [row[1] for row in gpu._run(bench)][1:-1] == ["skipped"] * 7
    monkeypatch.setattr(gpu, "MOST_SECONDS", 100.0)
    for part in ("exactness", "clips", "levels", "actor", "diffusers", "processes"):
        monkeypatch.setattr(bench, part, _broken(part))
    rows = list(gpu._run(bench))
    assert [row[1] for row in rows if row[0] == "clips"] == ["failed"]
    assert len([row for row in rows if row[1] == "failed"]) == 6


def _broken(name: str) -> object:
    def part() -> object:
        raise RuntimeError(f"no {name}\nmore")

    part.__name__ = name
    return part


def test_moments_are_of_one_clock() -> None:
    timer = Timer(torch.device("cpu"))
    first, second = timer.moment(), timer.moment()
    assert first() <= second()


def test_engines_are_told_from_flags_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDNN_USE_HEURISTIC_MODE_B", raising=False)
    with torch.backends.cudnn.flags(enabled=True):
        threads = torch.get_num_threads()
        make_deterministic(threads, float32=False)
        assert torch.backends.cudnn.deterministic
        assert engines() == "instant"
        monkeypatch.setenv("TORCH_CUDNN_USE_HEURISTIC_MODE_B", "1")
        assert engines() == "mode_b"
        torch.backends.cudnn.benchmark = True
        assert engines() == "searched"
        torch.backends.cudnn.benchmark = False
