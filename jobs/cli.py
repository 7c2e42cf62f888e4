"""The command `latentmill NAME [OPTIONS]`, the same as `python -m jobs.NAME [OPTIONS]`."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module, metadata
from typing import NoReturn

from jobs.process import run_command

COMMANDS = {
    "plan": "say what a run will make, take and cost, before it is started",
    "vae": "say what a VAE is: its family, trainers, frames and sizes",
    "encode": "encode video shards to scaled latents; run it again to resume",
    "text": "encode the captions of an output to text embeddings; run it again to resume",
    "submit": "run encode as a job on a Ray cluster, and follow it",
    "status": "show the progress and contents of an output, also during a run",
    "verify": "read and check a whole output; optionally encode some clips again and compare",
    "ls": "list the rows, shapes and sizes of an output",
    "stats": "show the statistics of the latents, and whether their normalisation fits",
    "report": "write an HTML page: pictures, statistics, rejections, runs",
    "export": "write latents and text embeddings as the files of a trainer",
    "import": "take latents that were made elsewhere into an output",
    "head": "print the first rows of an output as text",
    "cat": "write one latent as .npy or .pt",
    "demo": "make some videos in ./demo, encode them, and read the latents back",
    "bench": "measure the speed of a part, as a ratio to other programs",
}

MODULES = {"import": "import_latents"}
"""The module of a command whose name is a word of Python."""

USAGE = (
    f"usage: latentmill {{{','.join(COMMANDS)}}} [OPTIONS]\n"
    "(--help after a command lists its options; --version)\n\n"
    + "\n".join(f"  {name:<8}{help_}" for name, help_ in COMMANDS.items())
)


def main() -> NoReturn:
    """Run a command and exit with its exit code."""
    run_command(lambda: _run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    name, options = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name == "--version":
        print(f"latentmill {_version()}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f": did you mean {near[0]!r}?" if near else ""
        print(f"latentmill: no command {name!r}{meant}\n{USAGE}", file=sys.stderr)
        return 2
    code: int = import_module(f"jobs.{MODULES.get(name, name)}").main(options)
    return code


def _version() -> str:
    try:
        return metadata.version("latentmill")
    except metadata.PackageNotFoundError:
        return "(not installed: run from a source checkout)"


if __name__ == "__main__":
    main()
