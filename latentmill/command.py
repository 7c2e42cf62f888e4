"""The entry point of the command `latentmill`.

The packages of the command have common names, and a training repository with a `jobs.py` or a `vae/` of its own often
stands first on PYTHONPATH. So this module, whose package has a name of its own, looks that ours are found first.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds all packages of this installation."""

PACKAGES = ("jobs", "pipeline", "vae")


def main() -> NoReturn:
    """Run `jobs.cli` of this installation."""
    find_ours_first()
    import_module("jobs.cli").main()
    raise AssertionError("unreachable")


def find_ours_first() -> None:
    """Put ROOT first on the path if other packages hide ours. Ray's workers then get it from the driver."""
    if any(is_hidden(package) for package in PACKAGES):
        sys.path.insert(0, str(ROOT))


def is_hidden(package: str) -> bool:
    """Return whether something else would be imported in place of our package."""
    found = find_spec(package)
    return not (found and found.origin) or Path(found.origin).resolve() != ROOT / package / "__init__.py"
