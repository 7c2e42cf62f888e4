"""The command `latentmill`: a name, then what `python -m jobs.<name>` takes."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module, metadata
from typing import NoReturn

from jobs.process import run_command

COMMANDS = {
    "encode": "video shards in, scaled latents out; running it again resumes",
    "status": "what stands in an output, also while a run is going",
    "verify": "read everything back; optionally encode clips again and compare",
    "ls": "what is in an output: rows, shapes, sizes",
    "head": "the first rows of an output, as text",
    "cat": "one latent as .npy or .pt",
    "demo": "make some videos in ./demo and send them through the whole stream",
    "bench": "measure a part against other ways of doing it; figures are ratios",
}

USAGE = (
    f"usage: latentmill {{{','.join(COMMANDS)}}} [OPTIONS]\n"
    "(--help after a command lists its options; --version)\n\n"
    + "\n".join(f"  {name:<8}{help_}" for name, help_ in COMMANDS.items())
)


def main() -> NoReturn:
    """Run a command and leave with its own exit code."""
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
    code: int = import_module(f"jobs.{name}").main(options)
    return code


def _version() -> str:
    try:
        return metadata.version("latentmill")
    except metadata.PackageNotFoundError:
        return "(a checkout that is not installed)"


if __name__ == "__main__":
    main()
