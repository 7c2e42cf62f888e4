"""Law: tests -> jobs -> pipeline -> {vae, latentmill}, never upward; Ray and PyAV in few places only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "latentmill": {"vae", "pipeline", "jobs", "tests", "ray", "av"},
    "vae": {"latentmill", "pipeline", "jobs", "tests", "ray", "av"},
    "pipeline": {"jobs", "tests"},
    "jobs": {"tests"},
}


def imports(path: Path) -> set[str]:
    """Top-level names that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_downwards(package: str) -> None:
    found = {str(path.relative_to(ROOT)): imports(path) & FORBIDDEN[package] for path in modules(package)}
    assert {path: names for path, names in found.items() if names} == {}


def test_ray_stays_in_two_modules_and_av_in_decode() -> None:
    knows_ray = [path for path in modules("pipeline") if "ray" in imports(path)]
    assert knows_ray == [ROOT / "pipeline/cluster.py", ROOT / "pipeline/run.py"]
    knows_av = [path for path in modules("pipeline") if "av" in imports(path)]
    assert {path.parent for path in knows_av} == {ROOT / "pipeline/decode"}


def test_workers_start_without_torch() -> None:
    """What a read or decode worker imports must not import torch: it costs seconds for each of them."""
    light = ["pipeline/run.py", "pipeline/chunks.py", "pipeline/driver.py", "pipeline/preflight.py", "vae/info.py"]
    top = {path: [n for n in ast.parse((ROOT / path).read_text()).body if isinstance(n, ast.Import)] for path in light}
    assert not [path for path, nodes in top.items() if any(a.name == "torch" for node in nodes for a in node.names)]


def test_reading_starts_without_torch_and_never_loads_the_pipeline() -> None:
    """What a training process imports: opening an output needs no torch, and nothing of the stream."""
    heavy = ["ray", "av", "vae", "pipeline", "jobs", "torch"]
    check = f"import sys, latentmill; latentmill.open; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.stdout.strip() == "[]", done.stderr
