"""latentmill cat OUTPUT ROW --to FILE: write one latent as .npy, or with its row as .pt.

ROW is a number, counted from 0, an id, or the beginning of one. numpy has no bfloat16: an .npy of such a latent is
float32, which holds the same values.

Exit codes: 0; 1 storage failed or the row is damaged; 2 no output, no such row, or a wrong flag.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.compute as pc
import tyro

import latentmill
from jobs.ls import reading
from jobs.process import run_command
from pipeline.output.wording import printable


@dataclass(frozen=True, kw_only=True, slots=True)
class Cat:
    """Which latent, and where to."""

    output: Annotated[str, tyro.conf.Positional]
    """The output of `latentmill encode`: a path or URL."""
    row: Annotated[str, tyro.conf.Positional]
    """A number, or an id or its beginning."""
    to: Path
    """A file that ends in .npy or .pt."""
    unscaled: bool = False
    """As the VAE gives and takes it, not as training sees it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write one latent to a file."""
    args = tyro.cli(Cat, args=argv, prog="latentmill cat", description=__doc__)
    if args.to.suffix not in (".npy", ".pt"):
        print(printable(f"latentmill cat: --to must end in .npy or .pt, got {args.to}"), file=sys.stderr)
        return 2
    if not args.to.parent.is_dir():
        print(f"latentmill cat: --to {args.to}: there is no folder {args.to.parent}: create it first", file=sys.stderr)
        return 2
    return reading("cat", lambda: _cat(args))


def _cat(args: Cat) -> int:
    import torch

    latents = latentmill.open(args.output)
    position = int(args.row) if args.row.isdecimal() and len(args.row) < 16 else _position(latents, args.row)
    if position >= len(latents):
        raise IndexError(f"there is no row {position}: {args.output} has {len(latents)}")
    sample = (latents.unscaled() if args.unscaled else latents)[position]
    latent = sample["latent"]
    if args.to.suffix == ".pt":
        torch.save({**sample, "latent": latent.clone()}, args.to)
    else:
        np.save(args.to, (latent.float() if latent.dtype == torch.bfloat16 else latent).numpy())
    print(f"{args.to}: {'x'.join(map(str, latent.shape))} {latent.dtype}, row {position}, id {sample['id']}")
    return 0


def _position(latents: latentmill.LatentDataset, beginning: str) -> int:
    found = pc.indices_nonzero(pc.starts_with(latents.to_arrow()["id"], beginning)).to_pylist()
    if len(found) != 1:
        raise IndexError(f"{len(found) or 'no'} rows have an id that begins with {beginning!r}")
    return int(found[0])


if __name__ == "__main__":
    run_command(main)
