"""spec.json of an output: it is written once, compared by every later run, and read by every command."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from latentmill.format import READABLE_VERSIONS
from pipeline.errors import ConfigError
from pipeline.output import layout
from pipeline.settings import frozen
from pipeline.settings.spec import Spec, other_encoder
from pipeline.storage.addresses import redacted
from pipeline.storage.store import TEMPORARY

if TYPE_CHECKING:
    from pipeline.storage import Storage


DAMAGED = "is not a spec"
_RECORDED_LATER = {"time_tiling", "exact_statistics"}
"""Fields of the VAE that came later: they say what was always so, or what an output of before goes on without."""


def write_spec(output: Storage, spec: Spec) -> None:
    """Write spec.json if this output has none; otherwise refuse any difference and change nothing.

    Raises:
        ConfigError: the output has another Spec. The message names every field that differs, with both values.
    """
    frozen.write(output, layout.SPEC_PATH, spec.to_json(), lambda: check(output, spec))


def check(output: Storage, spec: Spec) -> Spec:
    """Compare the Spec with the spec.json of this output, if it has one. Writes nothing.

    Returns:
        The Spec in the format version and with the rule of times of the output: an output of an older version is
        continued as it began.

    Raises:
        ConfigError: as `write_spec`; or the output has data files or parts but no spec.json, so their Spec is unknown.
    """
    if stored := frozen.load(output, layout.SPEC_PATH, lambda text: (_as_of(spec, text), text.decode()), DAMAGED):
        spec, theirs = stored
        frozen.refuse_others(spec.to_json(), theirs, _why(output, spec, theirs))
        return spec
    made = chain(output.list(layout.DATA), output.list(layout.STAGING))
    if orphan := next((entry.path for entry in made if not entry.path.startswith(TEMPORARY)), None):
        raise ConfigError(
            f"{redacted(output.uri)} holds {orphan} but no {layout.SPEC_PATH}: restore it, or use another --output"
        )
    return spec


def _as_of(spec: Spec, text: bytes) -> Spec:
    """Return the Spec in the version of a spec.json."""
    found = json.loads(text)
    if found["format_version"] in READABLE_VERSIONS:
        spec = replace(spec, format_version=found["format_version"])
    if "times" not in found["clip"]:
        spec = replace(spec, clip=replace(spec.clip, times="as_stored"))
    unknown = _RECORDED_LATER - found["vae"].keys()
    return replace(spec, vae={name: value for name, value in spec.vae.items() if name not in unknown})


def _why(output: Storage, spec: Spec, theirs: str) -> str:
    """Return why an output with another Spec cannot be continued."""
    where = f"--output {redacted(output.uri)}"
    schedules = (str(vae.get("schedule", "")) for vae in (spec.vae, json.loads(theirs)["vae"]))
    if reason := other_encoder(*schedules):
        return f"{where} cannot be continued: {reason}. What differs"
    return f"{where} was made with another spec; use another --output, or the same settings"


def load_spec(output: Storage) -> Spec:
    """Return the Spec of an output. Raises ConfigError if it has none, or a damaged one."""
    if spec := frozen.load(output, layout.SPEC_PATH, lambda text: Spec.from_json(text.decode()), DAMAGED):
        return spec
    raise ConfigError(f"{redacted(output.uri)} holds no {layout.SPEC_PATH}: not an output of latentmill encode")
