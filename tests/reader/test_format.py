"""Law: `pipeline` writes and `latentmill` reads one format."""

from __future__ import annotations

from latentmill import format
from pipeline.output import derived, parts, shard_file
from pipeline.settings import spec


def test_names_types_and_places_are_the_same() -> None:
    assert format.SCHEMA.equals(shard_file.SCHEMA, check_metadata=True)
    assert format.DTYPES == parts.DTYPES
    assert (format.FOOTER_SPEC, format.FOOTER_SHARD) == (shard_file.FOOTER_SPEC, shard_file.FOOTER_SHARD)
    assert format.data_path("a") == shard_file.data_path("a")
    assert format.FOOTER_DERIVED == derived.FACTS
    assert format.SPEC_PATH == spec.PATH
    assert format.FORMAT_VERSION == spec.FORMAT_VERSION
    assert format.FORMAT_VERSION in format.READABLE_VERSIONS
