"""latentmill ls OUTPUT: show what an output holds: rows, shapes, lengths, sizes, captions, and its settings.

Exit codes: 0; 1 storage failed; 2 no output there, or a wrong flag.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated

import pyarrow.compute as pc
import tyro

import latentmill
from jobs.process import run_command
from latentmill.errors import ReadError, StorageError
from pipeline.output.wording import on_one_line, printable


@dataclass(frozen=True, kw_only=True, slots=True)
class Ls:
    """What to list."""

    output: Annotated[str, tyro.conf.Positional]
    """The output of `latentmill encode`: a path or URL."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is in an output."""
    args = tyro.cli(Ls, args=argv, prog="latentmill ls", description=__doc__)
    return reading("ls", lambda: _ls(args.output))


def reading(command: str, read: Callable[[], int]) -> int:
    """Run a command that reads an output: its errors become a line and an exit code."""
    try:
        return read()
    except StorageError as error:
        print(printable(f"latentmill {command}: storage: {error}"), file=sys.stderr)
        return 1
    except (ReadError, IndexError) as error:
        print(printable(f"latentmill {command}: {error}"), file=sys.stderr)
        return 1 if isinstance(error, latentmill.DamagedRowError) else 2


def _ls(uri: str) -> int:
    latents = latentmill.open(uri)
    index = latents.to_arrow()
    rule, clip = latents.spec["latent"], latents.spec["clip"]
    captions = len(index) - index["caption"].null_count if "caption" in index.column_names else 0
    seconds = pc.sum(pc.subtract(index["end_sec"], index["start_sec"])).as_py() or 0.0
    print(f"rows        {len(latents)}, {captions} with a caption, {seconds / 3600:.2f} hours of video")
    print(f"bytes       {pc.sum(index['byte_length']).as_py()} of latents in {len(pc.unique(index['file']))} files")
    print(on_one_line(f"latents     {rule['posterior']} as {rule['store_dtype']}, {latents.spec['vae']['name']}"))
    print(f"weights     sha256 {latents.spec['vae']['weights_sha256'][:12]}")
    print(f"clips       {clip['num_frames']} frames at {clip['fps']} fps")
    print(f"digest      {latents.digest}")
    print(f"{'latent':20}{'frames x height x width':28}{'rows':>10}")
    for shape, count in sorted(latents.shapes.items()):
        same = [pc.equal(pc.list_element(index["latent_shape"], i), length) for i, length in enumerate(shape)]
        rows = index.filter(reduce(pc.and_, same))
        sizes = rows.group_by(["num_frames", "height", "width"]).aggregate([]).to_pylist()
        pixels = ", ".join(sorted(f"{one['num_frames']}x{one['height']}x{one['width']}" for one in sizes)[:3])
        print(f"{'x'.join(map(str, shape)):20}{pixels + (', ...' if len(sizes) > 3 else ''):28}{count:>10}")
    return 0


if __name__ == "__main__":
    run_command(main)
