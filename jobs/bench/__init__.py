"""latentmill bench NAME: print ratios, as medians of interleaved rounds. `NAME --help` lists the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

BENCHES = {
    "stream": "compare the job with a plain loop over the same functions; show the peak of the object store",
    "encoder": "compare the encoder with diffusers",
    "chunking": "measure the error of a clip in chunks, compared with the uncut clip",
    "decode": "compare decoding with the ffmpeg command line and other decoders",
    "plan": "measure planning and resuming 100,000 shards",
    "driver": "measure the driver: receipts a second, memory of a million open clips, commits, seal",
    "simulate": "simulate a run on 10 to 3,000 encoders, and show where it stops scaling",
    "forecast": "compare the clips/s that `latentmill plan` predicts with those of the run that follows",
    "text": "compare encoding captions with a bare loop; measure resuming 100,000 of them",
    "export": "compare an export with a plain copy of the files that it wrote",
    "reader": "compare reading latents back with raw reads and with other readers",
    "gpu": "measure everything that only a GPU shows: rates, exactness, levels, clips, the actor, diffusers",
}
NOT_IN_ALL = "gpu"
"""It fails without a GPU."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark with its options, or all of them without options."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name, options = (argv[0], argv[1:]) if argv else ("--help", [])
    if name not in (*BENCHES, "all") or (name == "all" and options):
        print(__doc__)
        print(
            "\n".join(
                f"  {name:<10}{what}" for name, what in {**BENCHES, "all": f"run all of them but {NOT_IN_ALL}"}.items()
            )
        )
        return 0 if name in ("-h", "--help") else 2
    chosen = [bench for bench in BENCHES if bench != NOT_IN_ALL] if name == "all" else [name]
    codes = [import_module(f"jobs.bench.{bench}").main(options) for bench in chosen]
    return max(code or 0 for code in codes)
