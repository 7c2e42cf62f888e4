"""Law: `pipeline` writes and `latentmill` reads one format."""

from __future__ import annotations

from latentmill import format
from pipeline import latent_bytes
from pipeline.output import derived, shard_file, spec_file
from pipeline.settings import spec


def test_names_types_and_places_have_one_owner() -> None:
    assert shard_file.SCHEMA is format.SCHEMA
    assert latent_bytes.DTYPES is format.DTYPES
    assert shard_file.index_of is format.index_of
    assert shard_file.data_path is format.data_path


def test_what_pipeline_still_says_itself_is_the_same() -> None:
    assert format.FOOTER_DERIVED == derived.FACTS
    assert format.SPEC_PATH == spec_file.PATH
    assert format.FORMAT_VERSION == spec.FORMAT_VERSION
    assert format.FORMAT_VERSION in format.READABLE_VERSIONS
