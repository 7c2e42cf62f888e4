"""latentmill report: write one HTML page that shows whether the latents of an output are good.

It holds the figures of all runs, the settings in words, what was rejected and why, how the clips and their latents are
distributed, and of some clips the source beside what comes back from the latent. The page is one file without links to
the outside; it opens from disk. A run may go on meanwhile: the page shows what is committed.

Exit codes: 0; 1 storage failed; 2 no output there, a wrong flag, or the extra `report` is not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jobs.ls import reading
from pipeline.errors import ConfigError, StorageError
from pipeline.output.wording import printable

NEEDED = ("jinja2", "matplotlib", "PIL", "skimage")
"""What the extra `report` installs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Options of `latentmill report`."""

    output: str
    """Path or URL that `latentmill encode` wrote to."""
    to: Path = Path("report.html")
    """The file to write."""
    clips: int = 12
    """Number of sample clips, chosen by the seed. 0: none."""
    seed: int = 0
    """Random seed for the choice of clips."""
    decode: bool = True
    """Decode the latents of the sample clips to pictures. Without it, only their sources are shown."""
    vae: str = ""
    """The checkpoint, as for encode: its decoder makes the pictures. Default: that of the last run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the decoder. auto uses a GPU if there is one."""
    full_paths: bool = False
    """Show the folders of this machine. Without it, only the names of files are shown: a report is often shared."""

    def __post_init__(self) -> None:
        if self.clips < 0:
            raise ConfigError(f"--clips must be at least 0, got {self.clips}")
        if not self.to.parent.is_dir():
            raise ConfigError(f"--to {self.to}: there is no folder {self.to.parent}")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report. The module docstring lists the exit codes."""
    try:
        args = tyro.cli(Report, args=argv, prog="latentmill report", description=__doc__)
        if missing := absent():
            raise ConfigError(f"needs {', '.join(missing)}: pip install jinja2 matplotlib scikit-image")
        return reading("report", lambda: _report(args))
    except ConfigError as error:
        print(printable(f"latentmill report: {error}"), file=sys.stderr)
        return 2
    except StorageError as error:
        print(printable(f"latentmill report: storage: {error}"), file=sys.stderr)
        return 1


def absent() -> list[str]:
    """Return the modules that the report needs and that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def _report(args: Report) -> int:
    from jobs.report.page import page

    html = page(args)
    args.to.write_text(html, encoding="utf-8")
    print(f"{args.to.resolve()}  {len(html.encode()) / 1e6:.1f} MB")
    return 0
