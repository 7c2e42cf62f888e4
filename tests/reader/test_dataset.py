"""Law: what is read back are the committed rows, byte for byte, however the output was written, indexed and opened."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

import latentmill
from latentmill.store.files import Files
from pipeline.output.commit import seal
from pipeline.storage import Storage
from tests.reader.damage import flipped
from tests.reader.made import SHAPES, made_latent, shard_names, write_output, write_shard
from tests.small import LATENT


def true_rows(out: Path) -> list[dict[str, Any]]:
    """All rows as a plain Parquet reader sees them, sorted by shard."""
    paths = sorted((out / "data").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def assert_reads_back(latents: latentmill.LatentDataset, rows: list[dict[str, Any]], out: Path) -> None:
    assert len(latents) == len(rows)
    for i, row in enumerate(rows):
        got = latents[i]
        assert {name: got[name] for name in ("id", "key", "caption", "height", "start_sec")} == {
            name: row[name] for name in ("id", "key", "caption", "height", "start_sec")
        }
        shard, clip = row["key"].split("/")
        want = made_latent(shard_names(99)[int(shard)], int(clip), replace(LATENT, store_dtype=row["latent_dtype"]))
        assert got["latent"].shape == want.shape
        assert got["latent"].contiguous().view(torch.uint8).numpy().tobytes() == want.payload
        assert str(got["latent"].dtype) == f"torch.{row['latent_dtype']}"


@pytest.mark.parametrize("format_", ["parquet", "npy"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rows_are_read_back_bit_for_bit(tmp_path: Path, format_: Any, dtype: Any) -> None:
    write_output(tmp_path / "out", 2, 4, replace(LATENT, format=format_, store_dtype=dtype))
    assert_reads_back(latentmill.open(tmp_path / "out"), true_rows(tmp_path / "out"), tmp_path / "out")


def test_shapes_and_spec(output: Path) -> None:
    latents = latentmill.open(output)
    assert latents.shapes == {SHAPES[0]: 9, SHAPES[1]: 9, SHAPES[2]: 6}
    assert latents.spec == json.loads((output / "spec.json").read_text())
    assert "24 rows" in repr(latents)


def test_positions_count_from_both_ends_and_stop(output: Path) -> None:
    latents = latentmill.open(output)
    assert latents[-1]["id"] == latents[23]["id"]
    for position in (24, -25):
        with pytest.raises(IndexError):
            latents[position]


def test_without_a_seal_and_without_indexes_the_same_rows_in_the_same_order(output: Path, tmp_path: Path) -> None:
    """Whatever of the derived files is there: sealed, some indexes only, none at all."""
    sealed = latentmill.open(output)
    out = Path(shutil.copytree(output, tmp_path / "out"))
    (out / "index.parquet").unlink()
    from_index = latentmill.open(out)
    next((out / "index").glob("000001-*")).unlink()
    one_lacking = latentmill.open(out, cache=tmp_path / "other")
    shutil.rmtree(out / "index")
    from_data = latentmill.open(out, cache=tmp_path / "another")
    assert sealed.digest == from_index.digest == one_lacking.digest == from_data.digest
    assert from_data.to_arrow().equals(sealed.to_arrow())


@pytest.mark.parametrize("damage", ["cut", "of another data file"])
def test_an_index_that_is_damaged_or_stale_is_not_believed(output: Path, tmp_path: Path, damage: str) -> None:
    out = Path(shutil.copytree(output, tmp_path / "out"))
    (out / "index.parquet").unlink()
    first, second, _ = sorted((out / "index").iterdir())
    if damage == "cut":
        first.write_bytes(first.read_bytes()[:100])
    else:
        changed = pq.read_table(second)
        facts = json.dumps({"data_bytes": 1, "rejected": ""})
        pq.write_table(changed.slice(0, 3).replace_schema_metadata({"latentmill.derived": facts}), second)
    assert latentmill.open(out).digest == latentmill.open(output).digest


@pytest.mark.parametrize("name", ["index.parquet", "index"])
@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(500), marks=pytest.mark.slow)])
def test_no_flip_in_a_derived_file_passes_or_closes_the_output(
    output: Path, tmp_path: Path, name: str, seeds: range
) -> None:
    """Cut, emptied, garbled, or with flipped bits: the rows come from the file below it."""
    want = latentmill.open(output).to_arrow().to_pylist()
    out = Path(shutil.copytree(output, tmp_path / "out"))
    if name == "index":
        (out / "index.parquet").unlink()
    for seed in seeds:
        rng = random.Random(seed)
        file = rng.choice(sorted((out / name).iterdir())) if name == "index" else out / name
        whole = file.read_bytes()
        file.write_bytes(flipped(whole, rng))
        cache = tmp_path / f"cache{seed}"
        assert latentmill.open(out, cache=cache).to_arrow().to_pylist() == want, f"seed {seed}"
        shutil.rmtree(cache)
        file.write_bytes(whole)


def test_a_damaged_seal_is_made_again(output: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(output, tmp_path / "out"))
    whole = (out / "index.parquet").read_bytes()
    (out / "index.parquet").write_bytes(whole[:-50])
    seal(Storage(str(out)), shard_names(3))
    assert (out / "index.parquet").read_bytes() == whole


def test_a_seal_of_an_older_version_is_read(output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It has no checksum."""
    out = Path(shutil.copytree(output, tmp_path / "out"))
    sealed = pq.read_table(out / "index.parquet")
    pq.write_table(sealed.replace_schema_metadata(None), out / "index.parquet")
    shutil.rmtree(out / "index")
    assert latentmill.open(out).digest == latentmill.open(output).digest
    assert not caplog.records
    shutil.rmtree(tmp_path / "cache")
    pq.write_table(sealed.slice(0, 3).drop(["byte_offset"]), out / "index.parquet")
    assert latentmill.open(out).digest == latentmill.open(output).digest
    assert "index.parquet is damaged" in caplog.text


@pytest.mark.parametrize("what", ["garbage", "no index", "other types", "cut", "flipped", "a folder", "nothing"])
def test_a_pinned_index_that_is_none_is_an_open_error(output: Path, tmp_path: Path, what: str) -> None:
    latents, path = latentmill.open(output), tmp_path / "pinned.parquet"
    latents.save_index(path)
    table, whole = pq.read_table(path), path.read_bytes()
    match what:
        case "garbage":
            path.write_bytes(b"not Parquet")
        case "no index":
            pq.write_table(pa.table({"x": [1]}), path)
        case "other types":
            pq.write_table(table.set_column(0, "id", pa.array(list(range(24)))).drop(["latent_crc32"]), path)
        case "cut":
            path.write_bytes(whole[:-20])
        case "flipped":
            path.write_bytes(whole.replace(b"blake2b:", b"blake2c:", 1))
        case "a folder":
            path.unlink()
            path.mkdir()
        case "nothing":
            path.write_bytes(b"")
    with pytest.raises(latentmill.OpenError, match=r"index|column"):
        latentmill.open(output, index=path)


@pytest.mark.parametrize("sealed", [(0, 1), (1,), (0, 2), (2,)])
def test_a_seal_that_lags_is_completed_in_place(output: Path, tmp_path: Path, sealed: tuple[int, ...]) -> None:
    out = Path(shutil.copytree(output, tmp_path / "out"))
    seal(Storage(str(out)), [shard_names(3)[i] for i in sealed])
    latents = latentmill.open(out)
    assert latents.digest == latentmill.open(output).digest
    assert [row["id"] for row in true_rows(out)] == latents.to_arrow()["id"].to_pylist()


def test_rows_committed_later_appear_at_the_next_open(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = write_output(out, 2)
    before = latentmill.open(out)
    write_shard(Storage(str(out)), made, shard_names(3)[2], 8)
    after = latentmill.open(out)
    assert (len(before), len(after)) == (16, 24)
    assert before.digest != after.digest
    assert before[15]["id"] == after[15]["id"]
    assert after[23]["latent"].shape == SHAPES[1]


def test_a_saved_index_keeps_the_rows_of_its_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = write_output(out, 2)
    before = latentmill.open(out)
    before.save_index(tmp_path / "pinned.parquet")
    write_shard(Storage(str(out)), made, shard_names(3)[2], 8)
    pinned = latentmill.open(out, index=tmp_path / "pinned.parquet")
    assert pinned.digest == before.digest
    assert torch.equal(pinned[9]["latent"], before[9]["latent"])


def test_where_keeps_what_the_expression_says(output: Path) -> None:
    latents = latentmill.open(output)
    tall = latents.where(pc.field("height") == 32)
    assert len(tall) == 9
    assert set(tall.shapes) == {SHAPES[1]}
    assert all(tall[i]["height"] == 32 for i in range(9))
    both = tall.where(pc.field("caption") == "caption 7 of 000001")
    assert [both[0]["key"], len(both)] == ["000001/7", 1]
    assert tall.digest != latents.digest
    assert tall.digest == latentmill.open(output).where(pc.field("height") == 32).digest
    assert both.to_arrow()["key"].to_pylist() == ["000001/7"]


def test_filters_see_files_and_shapes(output: Path) -> None:
    latents = latentmill.open(output)
    name = f"data/{shard_names(2)[1]}.parquet"
    assert len(latents.where(pc.field("file") == name)) == 8
    assert len(latents.where(pc.list_element(pc.field("latent_shape"), 1) == 1)) == 9
    assert len(latents.where(pc.field("caption").is_null())) == 6


def test_wide_columns_come_when_they_are_asked_for(output: Path) -> None:
    latents = latentmill.open(output, columns=["extra_json", "timestamps_sec"])
    row = latents[3]
    assert set(row) == {"latent", "id", "extra_json", "timestamps_sec"}
    assert json.loads(row["extra_json"]) == {"n": 3}


def test_select_chooses_what_rows_hold(output: Path) -> None:
    latents = latentmill.open(output).select(["caption", "byte_offset"])
    assert list(latents[0]) == ["latent", "id", "caption", "byte_offset"]


def test_it_pickles_small_and_reads_the_same(output: Path) -> None:
    latents = latentmill.open(output).where(pc.field("height") == 32)
    latents[0]
    text = pickle.dumps(latents)
    assert len(text) < 10_000
    assert torch.equal(pickle.loads(text)[4]["latent"], latents[4]["latent"])


def test_a_batch_is_one_tensor_that_was_read_as_one(output: Path) -> None:
    latents = latentmill.open(output).where(pc.field("height") == 32)
    samples = latents.__getitems__([3, 1, 4])
    batch = latentmill.collate(samples)
    assert batch["latent"].shape == (3, *SHAPES[1])
    assert batch["latent"].data_ptr() == samples[0]["latent"].data_ptr()
    assert [torch.equal(batch["latent"][i], latents[n]["latent"]) for i, n in enumerate([3, 1, 4])] == [True] * 3
    assert batch["height"].tolist() == [32, 32, 32]
    assert batch["caption"] == [latents[n]["caption"] for n in (3, 1, 4)]
    turned = latentmill.collate(samples[::-1])
    assert torch.equal(turned["latent"], batch["latent"].flip(0))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_plain_dataloader_needs_nothing_but_the_sampler(output: Path, workers: int) -> None:
    latents = latentmill.open(output)
    sampler = latentmill.BatchSampler(latents, batch_size=3, drop_last=False)
    batches = list(DataLoader(latents, batch_sampler=sampler, num_workers=workers))  # type: ignore[arg-type]
    assert sorted(id_ for batch in batches for id_ in batch["id"]) == sorted(row["id"] for row in true_rows(output))
    assert all(batch["latent"].shape[0] == len(batch["caption"]) for batch in batches)


LEFT_ALONE = """
import sys
from torch.utils.data._utils import collate
before = dict(collate.default_collate_fn_map)
import latentmill, latentmill.tensors
assert sum(len(batch["id"]) for batch in latentmill.open(sys.argv[1]).loader(batch_size=2, drop_last=False)) == 24
assert collate.default_collate_fn_map == before
"""


def test_importing_and_loading_change_nothing_of_torch(output: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_ALONE, output], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


def test_rows_are_frozen_and_what_is_made_of_them_leaves_them_as_they_were(output: Path) -> None:
    latents = latentmill.open(output)
    before = vars(latents).copy()
    for other in (
        latents.where(pc.field("height") == 32),
        latents.select(["key"]),
        latents.unscaled(),
        latents.join("more", pa.table({"id": latents.to_arrow()["id"], "score": range(24)})),
    ):
        assert type(other) is latentmill.LatentDataset
        assert vars(other) != before
        assert vars(latents) == before
    with pytest.raises(AttributeError):
        latents.columns = ()  # type: ignore[misc]


def test_a_batch_of_two_shapes_says_what_to_use(output: Path) -> None:
    latents = latentmill.open(output)
    with pytest.raises(ValueError, match="one shape, got latent of 2x1x2x3, 2x2x4x3: use "):
        latentmill.collate(latents.__getitems__([0, 1]))


def test_unscaled_undoes_the_scale_of_the_spec(output: Path) -> None:
    latents = latentmill.open(output)
    scale, shift = (torch.tensor(latents.spec["vae"][name]).reshape(-1, 1, 1, 1) for name in ("scale", "shift"))
    raw = latents.unscaled()
    want = (latents[1]["latent"].float() / scale + shift).bfloat16()
    assert torch.equal(raw[1]["latent"], want)
    batch = latentmill.collate(raw.__getitems__([1, 4]))
    assert torch.equal(batch["latent"][0], want)


@pytest.fixture
def moments(tmp_path: Path) -> latentmill.LatentDataset:
    write_output(tmp_path / "moments", 2, 6, replace(LATENT, posterior="moments", store_dtype="float32"))
    return latentmill.open(tmp_path / "moments")


def test_stored_moments_are_drawn_anew_in_each_epoch_and_the_same_in_every_run(
    moments: latentmill.LatentDataset,
) -> None:
    def draws(seed: int, batch_size: int, epoch: int) -> dict[str, torch.Tensor]:
        loader = moments.loader(batch_size=batch_size, seed=seed, epoch=epoch, drop_last=False)
        return {id_: latent for batch in loader for id_, latent in zip(batch["id"], batch["latent"], strict=True)}

    first, other_batches = draws(0, 2, 0), draws(0, 3, 0)
    assert all(torch.equal(first[id_], other_batches[id_]) for id_ in first)
    for other in (draws(0, 2, 1), draws(1, 2, 0)):
        assert not any(torch.equal(first[id_], other[id_]) for id_ in first)


def test_draws_have_the_mean_and_the_spread_of_the_moments(moments: latentmill.LatentDataset) -> None:
    info = moments.spec["vae"]
    mean, logvar = moments.posterior("moments")[1]["latent"].chunk(2)
    scaled = (mean - info["shift"]) * info["scale"]
    torch.testing.assert_close(moments.posterior("mean")[1]["latent"], scaled)
    torch.testing.assert_close(moments.posterior("mean").unscaled()[1]["latent"], mean)
    from latentmill.sampler import Batch
    from latentmill.tensors import read_batch

    many = torch.stack([read_batch(moments, Batch([1], epoch=epoch), "raise")[0]["latent"] for epoch in range(400)])
    noise = (many - scaled) / (torch.exp(0.5 * logvar) * info["scale"])
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05


def test_an_output_without_moments_draws_nothing(output: Path) -> None:
    latents = latentmill.open(output)
    assert (latents.stored_posterior, latents.draw) == ("mean", "mean")
    with pytest.raises(latentmill.OpenError, match=r"'sample' needs an output of --posterior moments; .* 'mean'"):
        latents.posterior("sample")


def test_a_second_open_reads_no_index(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latentmill.open(output)
    monkeypatch.setattr(Files, "download", None)
    assert len(latentmill.open(output)) == 24


# Bad input: one clear error each.


def test_a_folder_that_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("hello")
    with pytest.raises(latentmill.OpenError, match=r"is not an output of latentmill: it has no spec\.json"):
        latentmill.open(tmp_path)
    with pytest.raises(latentmill.OpenError, match="is not an output"):
        latentmill.open(tmp_path / "nowhere")


def test_parquet_files_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "data" / "x.parquet")
    with pytest.raises(latentmill.OpenError, match=r"data/x\.parquet has no Spec"):
        latentmill.open(tmp_path)


def test_a_copied_data_folder_alone_is_enough(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "data", tmp_path / "out" / "data")
    assert latentmill.open(tmp_path / "out").digest == latentmill.open(output).digest


def _with_spec(output: Path, tmp_path: Path, change: dict[str, Any]) -> Path:
    out = Path(shutil.copytree(output, tmp_path / "out"))
    spec = json.loads((out / "spec.json").read_text()) | change
    (out / "spec.json").write_text(json.dumps(spec))
    return out


def test_an_output_of_a_newer_format(output: Path, tmp_path: Path) -> None:
    out = _with_spec(output, tmp_path, {"format_version": 99})
    with pytest.raises(
        latentmill.OpenError, match=r"has format version 99, this latentmill reads [\d, ]+: install a newer"
    ):
        latentmill.open(out)


def test_a_spec_that_is_none(output: Path, tmp_path: Path) -> None:
    out = _with_spec(output, tmp_path, {"vae": 1})
    with pytest.raises(latentmill.OpenError, match="is not a Spec"):
        latentmill.open(out)


def test_a_missing_data_file(output: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(output, tmp_path / "out"))
    next((out / "data").glob("000001-*")).unlink()
    with pytest.raises(latentmill.OpenError, match=r"has rows of data/000001-.*\.parquet, which is not there"):
        latentmill.open(out)


def test_a_missing_array(tmp_path: Path) -> None:
    write_output(tmp_path / "out", 2, 4, replace(LATENT, format="npy"))
    next((tmp_path / "out" / "data").glob("000001-*.npy")).unlink()
    with pytest.raises(latentmill.OpenError, match=r"has rows of data/000001-.*\.npy, which is not there"):
        latentmill.open(tmp_path / "out")


def test_a_data_file_that_goes_while_it_is_open(output: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(output, tmp_path / "out"))
    latents = latentmill.open(out)
    next((out / "data").glob("000001-*")).unlink()
    with pytest.raises(
        latentmill.DamagedRowError, match=rf"row {latents.facts([9])['id'][0]}: .*000001-.*does not exist"
    ):
        latents[9]


def test_an_output_in_which_nothing_is_committed(output: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(output / "spec.json", tmp_path / "out")
    with pytest.raises(latentmill.OpenError, match="holds no committed row yet"):
        latentmill.open(tmp_path / "out")


def test_an_empty_filter(output: Path) -> None:
    with pytest.raises(latentmill.EmptySelectionError, match=r"no row of 24 is kept by \(height > 9000\)"):
        latentmill.open(output).where(pc.field("height") > 9000)


def test_a_filter_on_an_unknown_column_names_those_there_are(output: Path) -> None:
    with pytest.raises(latentmill.OpenError, match=r"cannot filter by.*heigth.*Columns: .*height"):
        latentmill.open(output).where(pc.field("heigth") == 480)


def test_a_filter_that_cannot_compare(output: Path) -> None:
    with pytest.raises(latentmill.OpenError, match="cannot filter by"):
        latentmill.open(output).where(pc.field("height") == "tall")


def test_unknown_columns(output: Path) -> None:
    with pytest.raises(latentmill.OpenError, match=r"no column 'captoin'; it has id, .*caption"):
        latentmill.open(output, columns=["captoin"])
    with pytest.raises(latentmill.OpenError, match=r"column 'extra_json' was not opened; .*columns=\[\.\.\.\]"):
        latentmill.open(output).select(["extra_json"])


def test_bad_options(output: Path) -> None:
    with pytest.raises(ValueError, match="damaged must be 'raise' or 'skip', got 'ignore'"):
        latentmill.open(output, damaged="ignore")  # type: ignore[arg-type]
    with pytest.raises(latentmill.OpenError, match="posterior must be"):
        latentmill.open(output).posterior("median")  # type: ignore[arg-type]
