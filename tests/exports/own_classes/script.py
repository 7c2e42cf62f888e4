"""What the scripts share. Python puts their folder on the path of each."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

NOT_HERE = 77
"""Exit code if something that a trainer imports is not installed."""


def run(main: Callable[[str, str, str], None]) -> None:
    """Call main(checkout, export, out) with the arguments of the process."""
    try:
        main(*sys.argv[1:])
    except ImportError as error:
        print(error)
        sys.exit(NOT_HERE)


def empty_package(name: str, *paths: str, **content: Any) -> None:
    """Put a package with this content, and submodules at these paths, in place of the real one."""
    module: Any = types.ModuleType(name)
    module.__path__, module.__spec__ = list(paths), ModuleSpec(name, None, is_package=True)
    module.__dict__.update(content)
    sys.modules[name] = module
