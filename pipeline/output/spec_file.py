"""spec.json of an output: it is written once, compared by every later run, and read by every command."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from latentmill.format import READABLE_VERSIONS
from pipeline.errors import ConfigError, NotFoundError
from pipeline.output import layout
from pipeline.settings.spec import Spec, diff, other_encoder
from pipeline.storage.store import TEMPORARY

if TYPE_CHECKING:
    from pipeline.storage import Storage


_RECORDED_LATER = {"time_tiling", "exact_statistics"}
"""Fields of the VAE that came later: they say what was always so, or what an output of before goes on without."""


def write_spec(output: Storage, spec: Spec) -> None:
    """Write spec.json if this output has none; otherwise refuse any difference and change nothing.

    Raises:
        ConfigError: the output has another Spec. The message names every field that differs, with both values.
    """
    text = json.dumps(json.loads(spec.to_json()), indent=2, sort_keys=True).encode() + b"\n"
    if output.exists(layout.SPEC_PATH) or not output.create(layout.SPEC_PATH, text):
        check(output, spec)


def check(output: Storage, spec: Spec) -> Spec:
    """Compare the Spec with the spec.json of this output, if it has one. Writes nothing.

    Returns:
        The Spec in the format version and with the rule of times of the output: an output of an older version is
        continued as it began.

    Raises:
        ConfigError: as `write_spec`; or the output has data files or parts but no spec.json, so their Spec is unknown.
    """
    try:
        text = output.read(layout.SPEC_PATH).decode()
        found = json.loads(text)
        if found["format_version"] in READABLE_VERSIONS:
            spec = replace(spec, format_version=found["format_version"])
        if "times" not in found["clip"]:
            spec = replace(spec, clip=replace(spec.clip, times="as_stored"))
        unknown = _RECORDED_LATER - found["vae"].keys()
        spec = replace(spec, vae={name: value for name, value in spec.vae.items() if name not in unknown})
        differences = diff(spec.to_json(), text)
    except NotFoundError:
        made = chain(output.list(layout.DATA), output.list(layout.STAGING))
        if orphan := next((entry.path for entry in made if not entry.path.startswith(TEMPORARY)), None):
            raise ConfigError(
                f"{output.uri} holds {orphan} but no {layout.SPEC_PATH}: restore it, or use another --output"
            ) from None
        return spec
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{output.uri}: {layout.SPEC_PATH} is not a spec: {error!r}") from error
    if differences:
        fields = "\n  ".join(f"{one.field}: {one.ours} in this run, {one.theirs} in the output" for one in differences)
        schedules = next(((one.ours, one.theirs) for one in differences if one.field == "vae.schedule"), ("", ""))
        if reason := other_encoder(*schedules):
            raise ConfigError(f"--output {output.uri} cannot be continued: {reason}. What differs:\n  {fields}")
        raise ConfigError(
            f"--output {output.uri} was made with another spec; use another --output, or the same settings:\n  {fields}"
        )
    return spec


def load_spec(output: Storage) -> Spec:
    """Return the Spec of an output. Raises ConfigError if it has none, or a damaged one."""
    try:
        return Spec.from_json(output.read(layout.SPEC_PATH))
    except NotFoundError:
        raise ConfigError(f"{output.uri} holds no {layout.SPEC_PATH}: not an output of latentmill encode") from None
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{output.uri}: {layout.SPEC_PATH} is not a spec: {error!r}") from error
