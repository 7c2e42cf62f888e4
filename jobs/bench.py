"""python -m jobs.bench {stream,encoder,decode,plan,all}: every figure is a ratio, interleaved, a median of rounds."""

from __future__ import annotations

import sys
from importlib import import_module

BENCHES = {
    "stream": "the job against a bare loop over the same functions; the object store's peak",
    "encoder": "the encoder against diffusers",
    "decode": "decoding against the ffmpeg command line",
    "plan": "planning and resuming 100,000 shards",
}


def main(argv: list[str]) -> int:
    """Run a bench; its other arguments follow its name."""
    name = argv[0] if argv else "--help"
    if name not in (*BENCHES, "all"):
        print(__doc__)
        print("\n".join(f"  {name:<9}{what}" for name, what in BENCHES.items()))
        return 0 if name in ("-h", "--help") else 2
    codes = [import_module(f"jobs.bench_{bench}").main(argv[1:]) for bench in (BENCHES if name == "all" else [name])]
    return max(code or 0 for code in codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
