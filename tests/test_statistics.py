"""Laws: the statistics of a row are those of its stored latent, whatever its shape and dtype; an output of format
version 1 has none, and is opened, verified and continued as version 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import latentmill
from latentmill.format import DTYPES, STATISTICS, schema_of
from pipeline.latent_bytes import to_float32
from pipeline.output.spec_file import load_spec
from pipeline.output.statistics import statistics
from pipeline.storage import Storage
from pipeline.verify.whole import verify
from tests.outputs import CLIPS, make_output, rewrite, shard

pytest_plugins = ["tests.made_outputs"]


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from(sorted(DTYPES)),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    offset=st.sampled_from([0.0, -4.0, 100.0]),
    seed=st.integers(0, 1 << 16),
)
def test_they_are_those_of_numpy(shape: tuple[int, ...], dtype: str, scale: float, offset: float, seed: int) -> None:
    drawn = (np.random.default_rng(seed).normal(size=shape) * scale + offset).astype(np.float32)
    bits = (drawn.view(np.uint32) >> 16).astype("<u2") if dtype == "bfloat16" else drawn.astype(DTYPES[dtype])
    values = to_float32(bits.tobytes(), dtype).reshape(shape).astype(np.float64)
    found = statistics(bits.tobytes(), dtype, shape)
    assert found.keys() == set(STATISTICS.names)
    assert found["latent_max_abs"] == np.abs(values).max()
    for prefix, part in (("", values), ("first_", values[:, :1]), ("rest_", values[:, 1:])):
        mean, std = found[f"latent_{prefix}mean"], found[f"latent_{prefix}std"]
        if not part.size:
            assert mean is None
            assert std is None
            continue
        np.testing.assert_allclose(mean, part.mean((1, 2, 3)), rtol=1e-6, atol=1e-6 * scale)
        np.testing.assert_allclose(std, part.std((1, 2, 3)), rtol=1e-6, atol=1e-6 * scale)


def test_every_row_and_every_index_has_those_of_its_latent(made: Path) -> None:
    dataset = latentmill.open(made, columns=STATISTICS.names)
    for i, row in enumerate(dataset.to_arrow().to_pylist()):
        latent = dataset[i]["latent"].double()
        np.testing.assert_allclose(row["latent_mean"], latent.mean((1, 2, 3)), atol=1e-6)
        np.testing.assert_allclose(row["latent_rest_std"], latent[:, 1:].std((1, 2, 3), unbiased=False), atol=1e-6)
        assert row["latent_max_abs"] == latent.abs().max()


@pytest.mark.parametrize("name", STATISTICS.names)
def test_verify_names_a_statistic_that_is_not_of_its_latent(out: Path, name: str) -> None:
    def change(rows: list[dict[str, object]], footer: dict[str, object]) -> None:
        value = rows[0][name]
        rows[0][name] = [number + 0.01 for number in value] if isinstance(value, list) else 77.0

    rewrite(out, shard(out), change)
    (line,) = [str(problem) for checked in verify(Storage(str(out))) for problem in checked.problems]
    assert f" row 0: {name}: found " in line


def test_an_output_of_version_1_is_continued_as_version_1(source: Path, tmp_path: Path) -> None:
    make_output(source / "*.tar", tmp_path / "out", CLIPS, limit=1, version=1)
    output = make_output(source / "*.tar", tmp_path / "out", CLIPS)
    assert load_spec(output).format_version == 1
    for path in (tmp_path / "out" / "data").glob("*.parquet"):
        assert pq.read_schema(path).remove_metadata().equals(schema_of(1))
    assert not [problem for checked in verify(output) for problem in checked.problems]
    assert len(latentmill.open(output.uri)) == 4
    whole = make_output(source / "*.tar", tmp_path / "whole", CLIPS, version=1)
    assert {e.path: output.read(e.path) for e in output.list("data/")} == {
        e.path: whole.read(e.path) for e in whole.list("data/")
    }
