"""The command `latentmill`: a name, then what `python -m jobs.<name>` takes."""

from __future__ import annotations

import sys
from importlib import import_module

from pipeline.stop import leave

COMMANDS = {
    "encode": "video shards in, scaled latents out; running it again resumes",
    "status": "what stands in an output, also while a run is going",
    "verify": "read everything back; optionally encode clips again and compare",
}

USAGE = (
    "usage: latentmill {encode,status,verify} [OPTIONS]   (--help after a command lists its options)\n\n"
    + "\n".join(f"  {name:<8}{help_}" for name, help_ in COMMANDS.items())
)


def main() -> int:
    """Run a command and leave with its own exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in COMMANDS:
        print(f"latentmill: no command {name!r}\n{USAGE}", file=sys.stderr)
        return 2
    return leave(import_module(f"jobs.{name}").main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
