"""Law: a joined row has the values of its own partner, whatever the order and the layout of the table."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import latentmill


@pytest.fixture
def latents(output: Path) -> latentmill.LatentDataset:
    return latentmill.open(output)


def ids_of(latents: latentmill.LatentDataset) -> list[str]:
    return latents.to_arrow()["id"].to_pylist()  # type: ignore[no-any-return]


def scores(ids: list[str]) -> pa.Table:
    return pa.table(
        {"id": ids, "score": [zlib.crc32(id_.encode()) / 2**32 for id_ in ids], "note": [f"n {i}" for i in ids]}
    )


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values_are_those_of_the_partner(latents: latentmill.LatentDataset, data: st.DataObject) -> None:
    ids = ids_of(latents)
    table = scores(data.draw(st.permutations([*ids, "f" * 32])))
    joined = latents.join("text", table)
    row = data.draw(st.integers(0, 23))
    assert joined[row]["text_note"] == f"n {ids[row]}"
    assert joined[row]["text_score"] == zlib.crc32(ids[row].encode()) / 2**32
    assert torch.equal(joined[row]["latent"], latents[row]["latent"])


def test_joined_columns_filter_and_batch(latents: latentmill.LatentDataset) -> None:
    joined = latents.join("text", scores(ids_of(latents)))
    good = joined.where(pc.field("text_score") > 0.5)
    assert len(good) == sum(zlib.crc32(id_.encode()) / 2**32 > 0.5 for id_ in ids_of(latents))
    for batch in good.loader(batch_size=2, drop_last=False):
        assert batch["text_note"] == [f"n {id_}" for id_ in batch["id"]]
        assert (batch["text_score"] > 0.5).all()


def test_many_rows_may_share_a_partner(latents: latentmill.LatentDataset) -> None:
    table = pa.table({"height": pa.array([16, 24, 32], pa.int64()), "name": ["low", "wide", "tall"]})
    joined = latents.join("shape", table, on="height")
    assert [joined[i]["shape_name"] for i in range(3)] == ["low", "tall", "wide"]


def test_a_folder_of_files(latents: latentmill.LatentDataset, tmp_path: Path) -> None:
    table = scores(ids_of(latents))
    (tmp_path / "table").mkdir()
    pq.write_table(table.slice(0, 10), tmp_path / "table" / "a.parquet")
    pq.write_table(table.slice(10), tmp_path / "table" / "b.parquet")
    joined = latents.join("text", tmp_path / "table")
    assert [joined[i]["text_note"] for i in (0, 23)] == [f"n {ids_of(latents)[i]}" for i in (0, 23)]


def test_rows_without_a_partner(latents: latentmill.LatentDataset) -> None:
    ids = ids_of(latents)
    with pytest.raises(latentmill.OpenError, match=rf"no row for 4 of 24, such as id = \['{ids[20]}'.*'drop'"):
        latents.join("text", scores(ids[:20]))
    dropped = latents.join("text", scores(ids[:20]), missing="drop")
    assert ids_of(dropped) == ids[:20]
    kept = latents.join("text", scores(ids[:20]), missing="null")
    assert kept[22]["text_note"] is None
    assert np.isnan(kept[22]["text_score"])
    with pytest.raises(latentmill.EmptySelectionError, match="no row for any of 24"):
        latents.join("text", scores(["x"]), missing="drop")


def embeddings(path: Path, ids: list[str], lengths: list[int], **options: Any) -> dict[str, torch.Tensor]:
    """Text embeddings as an output's latents are written: one row a row group, uncompressed."""
    made = {}
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("embedding", pa.large_binary()),
            ("embedding_shape", pa.list_(pa.int32())),
            ("embedding_dtype", pa.string()),
            ("embedding_crc32", pa.uint32()),
            ("prompt", pa.string()),
        ]
    )
    settings = {
        "compression": "none",
        "use_dictionary": False,
        "write_batch_size": 1,
        "write_statistics": False,
    } | options
    with pq.ParquetWriter(path, schema, **settings) as writer:
        for id_, length in zip(ids, lengths, strict=True):
            made[id_] = torch.randn(length, 5, generator=torch.Generator().manual_seed(int(id_[:8], 16))).bfloat16()
            payload = made[id_].view(torch.uint8).numpy().tobytes()
            row = {"id": id_, "embedding": payload, "embedding_shape": [length, 5], "embedding_dtype": "bfloat16"}
            row |= {"embedding_crc32": zlib.crc32(payload), "prompt": f"p {id_}"}
            writer.write_table(pa.Table.from_pylist([row], schema))
    return made


def test_embeddings_are_read_by_ranges_and_stacked(latents: latentmill.LatentDataset, tmp_path: Path) -> None:
    made = embeddings(tmp_path / "t5.parquet", ids_of(latents)[::-1], [7] * 24)
    joined = latents.join("t5", tmp_path / "t5.parquet")
    assert torch.equal(joined[3]["t5_embedding"], made[joined[3]["id"]])
    for batch in joined.loader(batch_size=2):
        assert torch.equal(batch["t5_embedding"], torch.stack([made[id_] for id_ in batch["id"]]))
        assert batch["t5_prompt"] == [f"p {id_}" for id_ in batch["id"]]


def test_embeddings_of_many_lengths_or_with_gaps_are_lists(latents: latentmill.LatentDataset, tmp_path: Path) -> None:
    ids = ids_of(latents)
    made = embeddings(tmp_path / "t5.parquet", ids[:23], [3 + i % 4 for i in range(23)])
    joined = latents.join("t5", tmp_path / "t5.parquet", missing="null")
    for batch in joined.loader(batch_size=4, drop_last=False):
        assert isinstance(batch["t5_embedding"], list)
        for id_, value in zip(batch["id"], batch["t5_embedding"], strict=True):
            assert value is None if id_ == ids[23] else torch.equal(value, made[id_])


@pytest.mark.slow
def test_a_join_goes_into_workers(latents: latentmill.LatentDataset, tmp_path: Path) -> None:
    made = embeddings(tmp_path / "t5.parquet", ids_of(latents), [7] * 24)
    joined = latents.join("t5", tmp_path / "t5.parquet")
    for batch in joined.loader(batch_size=2, workers=2, multiprocessing_context="spawn"):
        assert torch.equal(batch["t5_embedding"], torch.stack([made[id_] for id_ in batch["id"]]))


def test_a_flipped_bit_in_an_embedding_is_found(latents: latentmill.LatentDataset, tmp_path: Path) -> None:
    path = tmp_path / "t5.parquet"
    made = embeddings(path, ids_of(latents), [7] * 24)
    joined = latents.join("t5", path)
    content = bytearray(path.read_bytes())
    content[content.index(made[ids_of(latents)[3]].view(torch.uint8).numpy().tobytes()) + 3] ^= 4
    path.write_bytes(content)
    with pytest.raises(latentmill.DamagedRowError, match=r"t5_embedding of row 3: .*t5\.parquet"):
        joined[3]


@pytest.mark.parametrize("options", [{"compression": "zstd"}])
def test_embeddings_in_another_layout_say_how_to_write_them(
    latents: latentmill.LatentDataset, tmp_path: Path, options: dict[str, Any]
) -> None:
    embeddings(tmp_path / "t5.parquet", ids_of(latents), [7] * 24, **options)
    with pytest.raises(latentmill.OpenError, match="must be uncompressed, one row a row group"):
        latents.join("t5", tmp_path / "t5.parquet")


def test_bad_tables(latents: latentmill.LatentDataset, tmp_path: Path) -> None:
    ids = ids_of(latents)
    table = scores(ids)
    with pytest.raises(latentmill.OpenError, match="the table has no column 'key'; it has id, score, note"):
        latents.join("text", table, on="key")
    with pytest.raises(latentmill.OpenError, match="more than one row for some 'id'"):
        latents.join("text", scores([*ids, ids[0]]))
    with pytest.raises(latentmill.OpenError, match="has no column but 'id'"):
        latents.join("text", table.select(["id"]))
    with pytest.raises(latentmill.OpenError, match=r"'big' has \d+ bytes a row, more than 65536: write it as a tensor"):
        latents.join("text", pa.table({"id": ids, "big": ["x" * 70_000] * 24}))
    with pytest.raises(latentmill.OpenError, match="a name of its own that is an identifier, got 'a b'"):
        latents.join("a b", table)
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(latentmill.OpenError, match=r"bad\.parquet is not a Parquet file"):
        latents.join("text", tmp_path / "bad.parquet")
    with pytest.raises(latentmill.OpenError, match="holds no Parquet file"):
        latents.join("text", tmp_path / "nowhere")
