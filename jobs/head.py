"""latentmill head OUTPUT: print the first rows of the index of an output, one row a line or in full.

Exit codes: 0; 1 storage failed; 2 no output there, or a wrong flag.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

import latentmill
from jobs.ls import reading
from jobs.process import run_command
from pipeline.output.wording import on_one_line


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Which rows to show."""

    output: Annotated[str, tyro.conf.Positional]
    """The output of `latentmill encode`: a path or URL."""
    rows: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 5
    """How many."""
    columns: tuple[str, ...] = ()
    """Of the index. Default: those that training uses."""
    json: bool = False
    """One JSON object a row."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the first rows."""
    args = tyro.cli(Head, args=argv, prog="latentmill head", description=__doc__)
    return reading("head", lambda: _head(args))


def _head(args: Head) -> int:
    latents = latentmill.open(args.output, columns=args.columns or None)
    count = min(max(args.rows, 0), len(latents))
    facts = latents.facts(range(count))
    _, kinds = latents.ranges(range(count))
    for i in range(count):
        row = {name: values[i] for name, values in facts.items()}
        row |= {"latent": f"{'x'.join(map(str, kinds[i][1]))} {kinds[i][0]}"}
        if args.json:
            print(json.dumps(row))
        else:
            print("\n".join(f"{name:12}{on_one_line(value)}" for name, value in row.items()), end="\n\n")
    return 0


if __name__ == "__main__":
    run_command(main)
