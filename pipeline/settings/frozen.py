"""Settings that lie beside what they made: written once, and compared field by field by every later run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import ConfigError, NotFoundError
from pipeline.settings.spec import diff
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted

T = TypeVar("T")


def write(output: Storage, path: str, settings: str, check: Callable[[], object]) -> None:
    """Write settings, as JSON, in a form for people. If there are some already, call `check` instead."""
    text = json.dumps(json.loads(settings), indent=2, sort_keys=True).encode() + b"\n"
    if output.exists(path) or not output.create(path, text):
        check()


def load(output: Storage, path: str, parse: Callable[[bytes], T], damaged: str) -> T | None:
    """Return what `parse` makes of the settings, or None if there are none.

    Raises:
        ConfigError: they are `damaged`, which the message says, or `parse` raises it.
    """
    try:
        return parse(output.read(path))
    except NotFoundError:
        return None
    except ConfigError as error:
        raise ConfigError(f"{redacted(output.uri)}: {path}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{redacted(output.uri)}: {path} {damaged}: {error!r}") from error


def refuse_others(ours: str, theirs: str, why: str) -> None:
    """Compare settings, as JSON. Raises ConfigError if they differ: `why`, and every field with both values."""
    if differences := diff(ours, theirs):
        fields = "\n  ".join(f"{one.field}: {one.ours} in this run, {one.theirs} there" for one in differences)
        raise ConfigError(f"{why}:\n  {fields}")
