"""Laws of reading: each row has its own embedding, padding is asked for, what is missing is an error that helps."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch

import latentmill
import latentmill.tracks.text as text_module
from latentmill.format import text_path
from latentmill.store.ranges import RangeReader
from tests.reader.made import shard_names, write_output
from tests.small import LATENT
from tests.text.made import write_text

Encoders = Callable[[str], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))


def tensor(embedding: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(embedding.payload), dtype=torch.float32).reshape(embedding.shape)  # type: ignore[attr-defined]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_output(tmp_path / "out", num_shards=3)
    return tmp_path / "out"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_bytes_are_the_same_in_another_order_of_shards(encoders: Encoders, tmp_path: Path, batch_size: int) -> None:
    found = []
    for where, step in (("forth", 1), ("back", -1)):
        write_output(tmp_path / where, num_shards=3)
        write_text(tmp_path / where, encoders("t5"), shards=shard_names(3)[::step], batch_size=batch_size)
        found.append([(tmp_path / where / text_path("t5", shard)).read_bytes() for shard in shard_names(3)])
    assert found[0] == found[1]


def test_a_footer_that_is_longer_than_the_first_read_is_read_whole(
    encoders: Encoders, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(out, encoders("t5"))
    monkeypatch.setattr(text_module, "FOOTER_BYTES", 100)
    assert len(latentmill.open(out, text="t5")) == 24


def test_rows_of_npy_arrays_have_their_text_too_and_a_dataset_pickles(encoders: Encoders, tmp_path: Path) -> None:
    write_output(tmp_path / "out", num_shards=1, rule=replace(LATENT, format="npy"))
    encoder = write_text(tmp_path / "out", encoders("t5"))
    latents = pickle.loads(pickle.dumps(latentmill.open(tmp_path / "out", text="t5", pad_text=True)))
    for row in latents:
        assert torch.equal(row["text"], tensor(encoder([row["caption"] or ""])[row["caption"] or ""]))
    assert latentmill.collate([latents[0], latents[3]])["text"].shape[0] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_each_row_has_the_embedding_of_its_caption(encoders: Encoders, out: Path, workers: int) -> None:
    encoder = write_text(out, encoders("t5"))
    plain, latents = latentmill.open(out), latentmill.open(out, text="t5")
    assert len(latents) == len(plain) == 24
    expected = encoder([row["caption"] or "" for row in plain])
    for row, other in zip(latents, plain, strict=True):
        wanted = expected[other["caption"] or ""]
        assert torch.equal(row["text"], tensor(wanted))
        assert row["text_length"] == wanted.length == len(row["text"])
        assert torch.equal(row["latent"], other["latent"])
    seen = 0
    for batch in latents.loader(batch_size=2, drop_last=False, workers=workers):
        assert isinstance(batch["text"], list)
        assert batch["text_length"].tolist() == [len(text) for text in batch["text"]]
        for caption, text in zip(batch["caption"], batch["text"], strict=True):
            assert torch.equal(text, tensor(expected[caption or ""]))
            seen += 1
    assert seen == 24


def test_a_batch_is_padded_if_it_is_asked_for(encoders: Encoders, out: Path) -> None:
    encoder = write_text(out, encoders("t5"), max_length=16)
    for pad, length in ((True, None), (20, 20)):
        latents = latentmill.open(out, text="t5", pad_text=pad)
        for batch in latents.loader(batch_size=3):
            longest = length or int(batch["text_length"].max())
            assert batch["text"].shape == (3, longest, 32)
            for text, size, caption in zip(batch["text"], batch["text_length"].tolist(), batch["caption"], strict=True):
                assert torch.equal(text[:size], tensor(encoder([caption or ""])[caption or ""]))
                assert not text[size:].any()
    with pytest.raises(ValueError, match="pad_text must be at least 16"):
        latentmill.open(out, text="t5", pad_text=15)


def test_latents_and_text_are_asked_for_before_either_is_waited_for(
    encoders: Encoders, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(out, encoders("t5"))
    latents = latentmill.open(out, text="t5")
    events: list[str] = []
    submit = RangeReader.submit

    def told(self: RangeReader, ranges: list, into: list) -> list:  # type: ignore[type-arg]
        futures = submit(self, ranges, into)
        events.append(ranges[0].file.partition("/")[0])
        for future in futures:
            result = future.result
            future.result = lambda result=result: (events.append("waited"), result())[1]  # type: ignore[method-assign]
        return futures

    monkeypatch.setattr(RangeReader, "submit", told)
    latents.__getitems__([0, 3])
    assert events == ["data", "text", *["waited"] * 4]


def test_rows_without_text_are_left_out(encoders: Encoders, out: Path) -> None:
    write_text(out, encoders("t5"), drop_empty=True)
    latents = latentmill.open(out, text="t5")
    assert [row["id"] for row in latents] == [row["id"] for row in latentmill.open(out) if row["caption"]]
    assert 0 < len(latents) < 24
    assert len(latents.where(pc.field("text_length") > 0)) == len(latents)


def test_the_empty_prompt_is_there_once(encoders: Encoders, out: Path) -> None:
    encoder = write_text(out, encoders("t5"), drop_empty=True)
    text = latentmill.open(out, text="t5").text
    assert text
    assert torch.equal(text.empty(), tensor(encoder([""])[""]))
    assert text.spec["encoder"]["model_type"] == "t5"


def test_a_missing_or_unfinished_text_says_what_to_run(encoders: Encoders, out: Path) -> None:
    with pytest.raises(latentmill.OpenError, match=rf"no text 't5': run `latentmill text --output {out} --name t5"):
        latentmill.open(out, text="t5")
    write_text(out, encoders("t5"), shards=shard_names(2))
    with pytest.raises(latentmill.OpenError, match=r"2 of 4 files are missing, .*text/t5/000002.*run `latentmill"):
        latentmill.open(out, text="t5")
    write_text(out, encoders("t5"))
    assert len(latentmill.open(out, text="t5")) == 24
    with pytest.raises(latentmill.OpenError, match="must be the name of a text"):
        latentmill.open(out, text="../t5")


def test_a_pinned_index_needs_the_text_of_its_own_shards_only(encoders: Encoders, out: Path, tmp_path: Path) -> None:
    latents = latentmill.open(out)
    first = latents.where(pc.starts_with(pc.field("key"), "000000"))
    first.save_index(tmp_path / "rows.parquet")
    write_text(out, encoders("t5"), shards=["empty", shard_names(1)[0]])
    pinned = latentmill.open(out, index=tmp_path / "rows.parquet", text="t5")
    assert [row["id"] for row in pinned] == [row["id"] for row in first]


def test_a_damaged_embedding_is_found_and_skipped_if_asked(encoders: Encoders, out: Path) -> None:
    write_text(out, encoders("t5"))
    latents = latentmill.open(out, text="t5")
    (one,), _ = latents.joins["text"].ranges(latents.rows([0]))["text"]
    assert one
    path = out / text_path("t5", shard_names(1)[0])
    data = bytearray(path.read_bytes())
    data[one.start] ^= 1
    path.write_bytes(data)
    with pytest.raises(latentmill.DamagedRowError, match=r"text/t5/000000"):
        latentmill.open(out, text="t5")[0]
    batch = latentmill.collate(latentmill.open(out, text="t5", damaged="skip").__getitems__([0, 3]))
    plain = latentmill.open(out)
    assert (batch["damaged"], batch["id"]) == ([plain[0]["id"]], [plain[3]["id"]])
