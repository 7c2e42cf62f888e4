"""Laws of the stages, called one after the other without Ray: what becomes of each caption, and of each fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentmill.format import EMPTY, text_path
from pipeline.errors import ConfigError, EncoderError, StorageError
from pipeline.guard.starts import MAX_FAILURES, Seat, card_of
from pipeline.guard.strikes import MAX_STRIKES, Strikes
from pipeline.output.layout import text_claim_path
from pipeline.runs.claims import Claims, Owner
from pipeline.stages.tables import Shared
from pipeline.storage import Storage
from pipeline.text import shard_file
from pipeline.text.captions import check_column, open_shards, read_captions
from pipeline.text.job import TextJob
from pipeline.text.receipts import TextProgress, TextReceipt
from pipeline.text.records import Caption, Embedding, NonfiniteTextError
from pipeline.text.run import run
from pipeline.text.spec import TextSpec
from pipeline.text.stages import EncodeActor, TextStages, read, receipts, store
from tests.outputs import rewrite
from tests.reader.made import shard_names, write_output
from tests.test_encode import kills
from tests.text.made import write_text

SPEC = TextSpec(
    encoder={"model_type": "t5", "width": 4},
    tokenizer_sha256="0",
    max_length=8,
    dtype="float32",
    layer="last",
    caption_column="caption",
    drop_empty=False,
    batch_size=1,
)
SHARD = shard_names(1)[0]
ODD = " \t\n"
TEXTS = ["a", None, "", "a", ODD, "שלום עולם", "word " * 10_000, "a"]


class Counted:
    """An encoder whose embedding of a text follows from its words, and that counts what it is asked."""

    def __init__(self, device: str = "cpu") -> None:
        self.asked: list[str] = []

    def __call__(self, captions: Iterable[str]) -> dict[str, Embedding]:
        texts = sorted(captions)
        self.asked += texts
        return {text: self.embedding(text) for text in texts}

    @staticmethod
    def embedding(text: str) -> Embedding:
        words = len(text.split()) + 1
        length = min(words, SPEC.max_length)
        values = torch.full((length, 4), float(len(text)))
        return Embedding(
            payload=values.numpy().tobytes(), shape=(length, 4), dtype="float32", length=length, truncated=words > 8
        )


def output(where: Path, texts: list[str | None]) -> Storage:
    write_output(where, num_shards=1, clips=len(texts))

    def change(rows: list[dict[str, Any]], _: dict[str, Any]) -> None:
        for row, text in zip(rows, texts, strict=True):
            row["caption"] = text
            row["extra_json"] = json.dumps({"long": f"long {text}", "count": 3} if text else {})

    rewrite(where, SHARD, change)
    return Storage(str(where))


class Run:
    """The three stages with the claims and the strikes of one run."""

    def __init__(self, out: Storage, make: Callable[..., Any] = Counted, spec: TextSpec = SPEC, run: str = "a") -> None:
        from functools import partial

        paths = {"claim": partial(text_claim_path, "t5"), "done": partial(text_path, "t5")}
        claims = Claims(out, replace(Owner.this_process(run), machine=""), **paths)  # type: ignore[arg-type]
        self.shared = Shared(claims, Strikes())
        self.stages = TextStages(output=out, name="t5", spec=spec, make_encoder=make)
        self.actor = EncodeActor(self.stages, self.shared, "cpu", 1)

    def __call__(self, *shards: str) -> list[TextReceipt]:
        import pyarrow as pa

        found = []
        for table in read(pa.table({"shard": list(shards)}), self.stages, self.shared):
            for encoded in self.actor(table):
                found += list(receipts(store(encoded, self.stages, self.shared)))
        return found


def rows(out: Storage, shard: str = SHARD) -> list[Any]:
    return list(shard_file.read(out.read(text_path("t5", shard))))


def test_each_caption_has_its_fate_and_is_encoded_once(tmp_path: Path) -> None:
    out = output(tmp_path, TEXTS)
    run = Run(out)
    (receipt,) = run(SHARD)
    assert run.actor._encode.asked == sorted({text or "" for text in TEXTS})
    assert [row.embedding for row in rows(out)] == [Counted.embedding(text or "") for text in TEXTS]
    assert [row.caption_sha256 for row in rows(out)] == [Caption(id="", text=text).sha256 for text in TEXTS]
    assert (receipt.state, receipt.rows, receipt.captions, receipt.truncated, receipt.dropped) == ("done", 8, 5, 1, 0)
    assert open_shards(out, "t5") == ([EMPTY], 1)
    assert not list(out.list("_claims/"))


def test_dropped_are_rows_without_a_caption_but_never_the_empty_prompt(tmp_path: Path) -> None:
    out = output(tmp_path, TEXTS)
    run = Run(out, spec=replace(SPEC, drop_empty=True))
    found = run(SHARD, EMPTY)
    assert [receipt.dropped for receipt in found] == [3, 0]
    assert [row.embedding is None for row in rows(out)] == [not (text or "").strip() for text in TEXTS]
    assert [row.embedding for row in rows(out, EMPTY)] == [Counted.embedding("")]


def test_a_field_of_extra_json_can_be_the_caption(tmp_path: Path) -> None:
    out = output(tmp_path, TEXTS)
    (receipt,) = Run(out, spec=replace(SPEC, caption_column="long"))(SHARD)
    assert receipt.state == "done"
    assert rows(out)[0].embedding == Counted.embedding("long a")
    assert rows(out)[1].embedding == Counted.embedding("")


def test_a_field_that_is_no_text_leaves_the_shard_open_and_says_why(tmp_path: Path) -> None:
    out = output(tmp_path, TEXTS)
    (receipt,) = Run(out, spec=replace(SPEC, caption_column="count"))(SHARD)
    assert (receipt.state, receipt.shard) == ("open", SHARD)
    assert "has 3, which is no text" in receipt.message


def test_an_unknown_column_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    out = output(tmp_path, TEXTS)
    for known in ("caption", "key", "long"):
        check_column(out, [EMPTY, SHARD], known)
    with pytest.raises(ConfigError, match="one of caption, key, count, long, got 'capton'"):
        check_column(out, [EMPTY, SHARD], "capton")


def test_a_missing_index_is_read_from_the_data_file(tmp_path: Path) -> None:
    out = output(tmp_path, TEXTS)
    before = read_captions(out, SHARD, "caption")
    (tmp_path / f"index/{SHARD}.parquet").unlink()
    assert read_captions(out, SHARD, "caption") == before
    assert not (tmp_path / f"index/{SHARD}.parquet").exists()


def test_a_shard_of_another_run_is_left_to_it(tmp_path: Path) -> None:
    out = output(tmp_path, TEXTS)
    first, second = Run(out, run="a"), Run(out, run="b")
    assert first.shared.claims.take(SHARD)
    assert [receipt.state for receipt in second(SHARD)] == ["elsewhere"]
    assert not out.exists(text_path("t5", SHARD))
    assert [receipt.state for receipt in first(SHARD)] == ["done"]
    assert [receipt.state for receipt in Run(out, run="c")(SHARD)] == ["elsewhere"]
    assert not list(out.list("_claims/"))


def test_an_embedding_that_is_not_finite_leaves_its_shard_open(tmp_path: Path) -> None:
    def fails(captions: Iterable[str]) -> dict[str, Embedding]:
        raise NonfiniteTextError("NaN or infinity in the embedding of 'a'")

    out = output(tmp_path, TEXTS)
    run = Run(out, lambda device: fails)
    (receipt,) = run(SHARD)
    assert (receipt.state, receipt.message) == ("open", "NaN or infinity in the embedding of 'a'")
    assert not list(out.list("_claims/"))


def test_an_error_of_the_code_leaves_its_shard_open_and_is_told(tmp_path: Path) -> None:
    def fails(captions: Iterable[str]) -> dict[str, Embedding]:
        return {"nothing": Counted.embedding("a")}[sorted(captions)[0]]  # type: ignore[return-value]

    (receipt,) = Run(output(tmp_path, TEXTS), lambda device: fails)(SHARD)
    assert (receipt.state, receipt.message) == ("open", "KeyError: ''")


def test_a_shard_without_rows_has_a_text_without_rows(tmp_path: Path) -> None:
    out = output(tmp_path, [])
    run = Run(out)
    assert [(receipt.state, receipt.rows) for receipt in run(SHARD)] == [("done", 0)]
    assert rows(out) == []
    assert open_shards(out, "t5") == ([EMPTY], 1)


def test_a_shard_that_kills_every_encoder_is_not_tried_for_ever(tmp_path: Path) -> None:
    out = output(tmp_path, TEXTS)
    run = Run(out)
    for _ in range(MAX_STRIKES):
        run.shared.guard.begin(f"{SHARD}/text")
    (receipt,) = run(SHARD)
    assert (receipt.state, receipt.message) == ("open", f"{MAX_STRIKES} encoders died while they encoded it")


def test_encoders_that_die_at_their_start_end_the_run(tmp_path: Path) -> None:
    run = Run(output(tmp_path, TEXTS))
    run.shared.guard.new_pass()
    for _ in range(MAX_FAILURES):
        run.shared.guard.starting(Seat(name="", card=card_of("cpu")), 1)
    with pytest.raises(EncoderError, match=r"3 encoders in a row failed while they started on .* cpu"):
        EncodeActor(run.stages, run.shared, "cpu", 1)


def test_where_no_encoder_is_left_that_waits_for_blocks_the_run_ends(tmp_path: Path) -> None:
    run = Run(output(tmp_path, TEXTS))
    for _ in range(MAX_FAILURES + 1):  # it stood before
        run.shared.guard.starting(Seat(name="", card=card_of("cpu")), 1)
    run.actor = EncodeActor(run.stages, run.shared, "cpu", 1)
    with pytest.raises(EncoderError, match="no encoder is left: 3 encoders in a row failed"):
        run(SHARD)


def test_a_card_that_dies_of_any_text_is_broken(tmp_path: Path) -> None:
    """The third death is of a text that is no caption; what is asked for is the end of the process."""
    run = Run(output(tmp_path, TEXTS))
    for _ in range(MAX_STRIKES):
        run.shared.guard.begin(f"{SHARD}/text")
    run.shared.guard.begin(f"control  {card_of('cpu')}/")
    assert kills(lambda: run(SHARD))


def test_a_text_that_cannot_be_written_leaves_its_shard_open(tmp_path: Path) -> None:
    class Full(Storage):
        def create(self, path: str, data: bytes | Path) -> bool:
            if path.startswith("text/"):
                raise StorageError("no space")
            return super().create(path, data)

    output(tmp_path, TEXTS)
    (receipt,) = Run(Full(str(tmp_path)))(SHARD)
    assert (receipt.state, receipt.is_write, receipt.message) == ("open", True, "no space")


def test_a_receipt_that_comes_twice_counts_once() -> None:
    progress = TextProgress(num_shards=2, clock=iter(range(100)).__next__)
    done = TextReceipt(shard="a", state="done", rows=5, captions=3)
    for receipt in (replace(done, state="open", message="x"), done, done):
        progress.add(receipt)
        if receipt.state == "done":
            progress.finish("a")
    assert progress.sums["rows"] == 5
    assert "text shards 1/2  captions 3" in progress.line()


def test_the_line_says_what_another_run_holds() -> None:
    progress = TextProgress(num_shards=2, clock=iter(range(100)).__next__)
    progress.elsewhere.add("a")
    assert "held by another run 1" in progress.line()
    progress.find({"a"})
    assert "another run" not in progress.line()


def test_a_claim_that_a_killed_run_left_on_a_finished_shard_is_swept(
    encoders: Callable[[str], Path], tmp_path: Path
) -> None:
    write_output(tmp_path, num_shards=2)
    write_text(tmp_path, encoders("t5"))
    for shard in (EMPTY, *shard_names(2)):
        assert Storage(str(tmp_path)).create(text_claim_path("t5", shard), b"of a run that was killed")
    job = TextJob(output=str(tmp_path), encoder=str(encoders("t5")), dtype="float32")
    assert run(job).open_shards == {}  # nothing to encode, so Ray does not start
    assert [path.name for path in tmp_path.glob("_claims/**/*") if path.is_file()] == []
