"""TextSpec: all that determines the bytes of a text for given captions. It is frozen in text/NAME/spec.json."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from latentmill.format import TEXT_VERSION
from pipeline.errors import ConfigError
from pipeline.output.layout import text_spec_path
from pipeline.records import canonical_json
from pipeline.settings import frozen
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted
from pipeline.text.clean import Cleaning

ABSENT = {"clean": "none"}
"""The value of a field that a spec.json lacks: the behaviour of the versions without this field. A spec with this value
omits the field, so that an older text goes on with the same bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSpec:
    """The settings of a text, with every value resolved. No path, no workers."""

    encoder: dict[str, Any]
    """Class, model type, number of layers, width, and the sha256 of its config and of its weights."""
    tokenizer_sha256: str
    max_length: int
    dtype: str
    layer: int | str
    """`last`, or the place in `hidden_states`, from 0."""
    caption_column: str
    drop_empty: bool
    batch_size: int
    pad_tokens: bool = False
    clean: Cleaning = "none"
    """What is done to a caption before it is encoded."""
    text_version: int = TEXT_VERSION

    def to_json(self) -> str:
        """Return the canonical JSON: equal specs give equal text."""
        return canonical_json({name: value for name, value in asdict(self).items() if ABSENT.get(name) != value})

    @staticmethod
    def from_json(text: str | bytes) -> TextSpec:
        """Parse the text of `to_json`. Raises ConfigError for a version that this code does not read."""
        fields = json.loads(text)
        if fields["text_version"] != TEXT_VERSION:
            raise ConfigError(f"text_version must be {TEXT_VERSION}, got {fields['text_version']} in spec.json")
        return TextSpec(**fields)

    @property
    def digest(self) -> str:
        """The sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def load(output: Storage, name: str) -> TextSpec | None:
    """Return the spec of a text, or None if there is no such text. Raises ConfigError if the spec is damaged."""
    return frozen.load(output, text_spec_path(name), TextSpec.from_json, "is not the spec of a text")


def check(output: Storage, name: str, spec: TextSpec) -> None:
    """Compare the spec with the one of this text, if there is one. Writes nothing.

    Raises:
        ConfigError: they differ. The message names every field that does, with both values.
    """
    if stored := load(output, name):
        made = f"text {name!r} of {redacted(output.uri)} was made with another spec"
        why = f"{made}; use another --name, or the same settings"
        frozen.refuse_others(canonical_json(asdict(spec)), canonical_json(asdict(stored)), why)


def write(output: Storage, name: str, spec: TextSpec) -> None:
    """Write the spec of a text if it has none. Raises ConfigError if another run has written a different one."""
    frozen.write(output, text_spec_path(name), spec.to_json(), lambda: check(output, name, spec))
