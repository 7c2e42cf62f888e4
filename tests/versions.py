"""Try the oldest and the newest versions of every dependency that pyproject.toml allows, on each Python.

    python -m tests.versions [--python 3.11 3.12 3.13] [--resolution lowest-direct highest]

Each pair gets an environment of its own in a temporary folder, with a wheel of this checkout and, of all else, only
what is published as a wheel. In it the demo runs: encode, verify with clips that are encoded again, read. Then a
training loop takes batches. The table that is printed stands in CONTRIBUTING.md. It needs `uv` on the PATH, the
Pythons, and about 15 GB: torch brings CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = ("torch", "ray", "av", "pyarrow", "numpy", "fsspec", "s3fs", "tyro")
READ = """
import latentmill
from torch.utils.data import DataLoader
latents = latentmill.open("demo/latents/tars")
batches = list(DataLoader(latents, batch_size=2, collate_fn=list))
assert sum(map(len, batches)) == len(latents) > 0, len(latents)
"""
"""What a trainer does with the output of the demo."""


def main() -> int:
    """Print a row for each pair of a Python and a resolution. Return 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=["3.11", "3.12", "3.13"])
    parser.add_argument("--resolution", nargs="+", default=["lowest-direct", "highest"])
    args = parser.parse_args()
    if shutil.which("uv") is None:
        sys.exit("tests.versions needs uv on the PATH: pip install uv")
    print(f"| Python | versions | {' | '.join(SHOWN)} | result |\n|{'---|' * (len(SHOWN) + 3)}", flush=True)
    results = [_row(python, resolution) for resolution in args.resolution for python in args.python]
    return 0 if all(results) else 1


def _row(python: str, resolution: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="lm") as folder:
        where, found = Path(folder), dict[str, str]()
        try:
            _run(["uv", "venv", "--quiet", "--python", python, "env"], where)
            _run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(where), str(ROOT)], where)
            (wheel,) = where.glob("*.whl")
            install = ["uv", "pip", "install", "--quiet", "--no-build", "--python", "env/bin/python"]
            _run([*install, "--resolution", resolution, "-r", str(ROOT / "pyproject.toml"), str(wheel)], where)
            listed = _run(["uv", "pip", "list", "--quiet", "--python", "env/bin/python", "--format", "json"], where)
            found = {package["name"]: package["version"] for package in json.loads(listed)}
            _run([str(where / "env/bin/latentmill"), "demo"], where)
            _run([str(where / "env/bin/python"), "-c", READ], where)
            result = "runs"
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or error.stdout).strip().splitlines() or [""]
            result = f"fails: {lines[-1][:200]}"
            print("\n".join(lines[-30:]), file=sys.stderr)
    versions = " | ".join(found.get(name, "") for name in SHOWN)
    kind = "oldest" if resolution.startswith("lowest") else "newest"
    print(f"| {python} | {kind} | {versions} | {result} |", flush=True)
    return result == "runs"


def _run(command: list[str], folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
