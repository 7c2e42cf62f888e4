"""latentmill demo: encode a few short videos and read the latents back, in about a minute.

Deletes and rewrites ./demo. Every step prints its command and calls the same `main` with the same arguments in this
process.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from jobs import encode, report, status, verify
from jobs.demo.videos import write_sources
from pipeline.output.wording import size

DEMO = Path("demo")

MARK = DEMO / ".made-by-latentmill-demo"
"""The demo deletes a folder only if this file is in it."""

SMALL = ["--vae", "tiny", "--height", "64", "--width", "96"]
TARS = ["--source", "demo/tars/*.tar", "--output", "demo/latents/tars", *SMALL, "--num-frames", "9", "--clips", "all"]
FOLDER = ["--source", "demo/folder", "--output", "demo/latents/folder", *SMALL, "--num-frames", "49", "--fps", "native",
          "--chunk-windows", "2"]  # fmt: skip
TABLE = ["--source", "demo/table.jsonl", "--output", "demo/latents/table", *SMALL, "--num-frames", "9"]

REPORT = ["--output", "demo/latents/tars", "--to", "demo/report.html", "--clips", "6"]

READ_BACK = """\
import latentmill

latents = latentmill.open("demo/latents/tars")
row = latents[0]
print(len(latents), row["key"], repr(row["caption"]), tuple(row["latent"].shape), row["latent"].dtype)
"""


@dataclass(frozen=True)
class Demo:
    """Make some videos in ./demo and send them through the whole stream. It takes no options."""


Main = Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Exit code 0 if every step succeeded, else the exit code of the step that failed."""
    tyro.cli(Demo, args=argv, prog="latentmill demo", description=__doc__)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # keeps the order with stderr in a pipe
    started = time.perf_counter()
    print("The VAE of this demo, `tiny`, is small: it shows how everything works, and is not for real latents.")
    if DEMO.exists() and not MARK.exists():
        print(f"{DEMO.resolve()} was not made by this demo and is not deleted: move or remove it", file=sys.stderr)
        return 2
    shutil.rmtree(DEMO, ignore_errors=True)
    _heading("Make the sources: two tars, a folder and a table; one video is a text file, another is cut in half")
    DEMO.mkdir()
    MARK.touch()
    write_sources(DEMO)
    _tree(DEMO)
    again = ["--reencode", "2"]
    steps: list[tuple[str, str, Main, list[str]]] = [
        ("Encode tars: all clips of 9 frames at 8 frames per second", "encode", encode.main, TARS),
        ("Run the same command again: there is nothing left to do", "encode", encode.main, TARS),
        ("Encode a folder: 49 consecutive frames, as three overlapping chunks", "encode", encode.main, FOLDER),
        ("Encode a table: the range of each row; one row names a missing file", "encode", encode.main, TABLE),
        ("Show the status of the first output", "status", status.main, ["--output", "demo/latents/tars"]),
        ("Check everything, and encode two clips again", "verify", verify.main,
         ["--output", "demo/latents/tars", *again]),
        ("Check the clips that were encoded in chunks", "verify", verify.main,
         ["--output", "demo/latents/folder", *again]),
    ]  # fmt: skip
    if absent := report.absent():
        print(f"\nNo report at the end: it needs {', '.join(absent)} (pip install jinja2 matplotlib scikit-image)")
    else:
        steps.append(("Make a page to look at", "report", report.main, REPORT))
    for heading, name, command, argv in steps:
        _heading(heading)
        print(f"$ latentmill {name} {shlex.join(argv)}")
        if code := command(argv):
            print(f"demo: exit code {code}, expected 0", file=sys.stderr)
            return code
    _heading("The files that were written")
    _tree(DEMO / "latents")
    _heading("Read a latent back")
    print(READ_BACK)
    exec(READ_BACK, {})
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    return 0


def _heading(text: str) -> None:
    print(f"\n=== {text}")


def _tree(root: Path, indent: str = "") -> None:
    """Print a folder and the sizes of its files, without empty folders, which an object store does not have."""
    print(f"{indent}{root.name if indent else root}/")
    for path in sorted(root.iterdir()):
        if path.is_file() and path != MARK:
            print(f"{indent}  {path.name}  {size(path.stat().st_size)}")
        elif path.is_dir() and any(inside.is_file() for inside in path.rglob("*")):
            _tree(path, indent + "  ")
