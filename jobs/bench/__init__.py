"""python -m jobs.bench BENCH: figures are ratios, interleaved, medians of rounds. `BENCH --help` tells the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

BENCHES = {
    "stream": "the job against a bare loop over the same functions; the object store's peak",
    "encoder": "the encoder against diffusers",
    "chunking": "the error of a clip in chunks against the uncut clip",
    "decode": "decoding against the ffmpeg command line and others",
    "plan": "planning and resuming 100,000 shards",
    "reader": "reading latents back, against raw reads and other readers",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a bench, whose options follow its name, or all as they are."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name, options = (argv[0], argv[1:]) if argv else ("--help", [])
    if name not in (*BENCHES, "all") or (name == "all" and options):
        print(__doc__)
        print("\n".join(f"  {name:<10}{what}" for name, what in {**BENCHES, "all": "all of them"}.items()))
        return 0 if name in ("-h", "--help") else 2
    codes = [import_module(f"jobs.bench.{bench}").main(options) for bench in (BENCHES if name == "all" else [name])]
    return max(code or 0 for code in codes)
