"""Law: tests -> jobs -> pipeline -> vae, never upward; Ray in run.py and jobs only, PyAV in pipeline/decode only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {"vae": {"pipeline", "jobs", "tests", "ray", "av"}, "pipeline": {"jobs", "tests"}, "jobs": {"tests"}}


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
