"""Laws: the statistics of a row are those of its stored latent, whatever its shape and dtype; an output of format
version 1 has none, and is opened, verified and continued as version 1."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import latentmill
from jobs.stats import main
from latentmill.format import DTYPES, STATISTICS, schema_of, to_float32
from latentmill.statistics.pool import Pool
from pipeline.output.spec_file import load_spec
from pipeline.output.statistics import statistics
from pipeline.records import clip_id
from pipeline.storage import Storage
from pipeline.verify.whole import verify
from tests.outputs import CLIPS, Rows, make_output, only_parquet, replace_latent, rewrite, shard

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


def test_pooled_they_are_those_of_all_latents_in_one_array(made: Path) -> None:
    dataset = latentmill.open(made, columns=STATISTICS.names)
    latents = [dataset[i]["latent"].double().numpy() for i in range(len(dataset))]
    found = dataset.statistics
    assert found
    assert found.rows == len(latents)
    assert found.rest
    for moments, frames in ((found.whole, slice(None)), (found.first, slice(1)), (found.rest, slice(1, None))):
        together = np.concatenate([latent[:, frames].reshape(len(latent), -1) for latent in latents], 1)
        assert moments.positions == together.shape[1]
        np.testing.assert_allclose(moments.mean, together.mean(1), atol=1e-6)
        np.testing.assert_allclose(moments.std, together.std(1), atol=1e-6)
        assert moments.overall == pytest.approx((together.mean(), together.std()), abs=1e-6)
    assert found.max_abs == max(np.abs(latent).max() for latent in latents)


@given(cuts=st.lists(st.integers(0, 20), max_size=4), lengths=st.lists(st.integers(1, 5), min_size=20, max_size=20))
def test_the_pool_does_not_depend_on_the_tables(cuts: list[int], lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for frames in lengths:
        latent = rng.normal(2, 3, (3, frames, 2, 2)).astype("<f4")
        rows.append({"latent_shape": list(latent.shape)} | statistics(latent.tobytes(), "float32", latent.shape))
    schema = pa.schema([("latent_shape", pa.list_(pa.int32())), *STATISTICS])
    pools = []
    for places in ([], sorted(cuts)):
        pool = Pool()
        for begin, stop in pairwise([0, *places, len(rows)]):
            pool.add(pa.Table.from_pylist(rows[begin:stop], schema))
        pools.append(pool.result())
    whole, cut = pools
    assert whole
    assert cut
    np.testing.assert_allclose(cut.whole.mean, whole.whole.mean, rtol=1e-12)
    np.testing.assert_allclose(cut.whole.std, whole.whole.std, rtol=1e-12)
    assert (cut.rest is None) == (whole.rest is None) == all(frames == 1 for frames in lengths)


@pytest.mark.parametrize(("change", "sign"), [(0.0, "is 0, that"), (10.0, "of channel ")])
def test_stats_names_a_latent_of_zeros_and_one_times_ten(
    out: Path, change: float, sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    only_parquet(out)

    def spoil(rows: Rows, footer: dict[str, object]) -> None:
        values = to_float32(rows[1]["latent"], "bfloat16") * change
        replace_latent(rows[1], (values.view(np.uint32) >> 16).astype("<u2").tobytes())

    rewrite(out, name := shard(out), spoil)
    assert main(["--output", str(out), "--furthest", "1"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("furthest")]
    assert f"({clip_id(name, 0, 1)})" in line
    assert sign in line


def test_the_normalisation_that_stats_fits_gives_mean_0_and_std_1(
    source: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(made), "--json"]) == 0
    fitted = json.loads(capsys.readouterr().out)["normalisation"]["fitted"]
    for scale, shift in ((fitted["scale"], 0.0), (fitted["channel_scale"], fitted["channel_shift"])):
        where = tmp_path / str(np.size(scale))
        again = make_output(source / "*.tar", where, CLIPS, normalisation={"scale": scale, "shift": shift})
        found = latentmill.open(again.uri, columns=STATISTICS.names).statistics
        assert found
        assert found.whole.overall[1] == pytest.approx(1, abs=0.01)
        if np.size(scale) > 1:
            np.testing.assert_allclose(found.whole.mean, 0, atol=0.01)
            np.testing.assert_allclose(found.whole.std, 1, atol=0.01)
        assert main(["--output", str(again.uri)]) == 0
        assert "near 1, as diffusion training expects" in capsys.readouterr().out


def test_an_output_without_statistics_says_why(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_output(source / "*.tar", tmp_path / "out", CLIPS, version=1)
    assert main(["--output", str(tmp_path / "out")]) == 2
    assert "statistics came with format version 2" in capsys.readouterr().err
