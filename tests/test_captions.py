"""Law: every summary says how many rows have a caption, and what stood in the place of those that are missing."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from jobs import status as command
from pipeline.control.summary import Summary
from pipeline.output.captions import Captions
from pipeline.output.commit import commit, seal
from pipeline.output.parts import stage
from pipeline.output.spec_file import write_spec
from pipeline.output.tally import tally
from pipeline.records import CompleteShard, clip_id
from pipeline.sources.samples import parse_sidecars
from pipeline.storage import Storage
from tests.small import latent, spec

SHARD = "000000-000000000000"

SIDECARS: tuple[tuple[bytes | None, Any], ...] = (
    (b"a cat", None),
    (None, {"caption": "a dog", "prompt": "ignored, for there is a caption"}),
    (None, {"text": "a house"}),
    (b"", {"caption": ["not read, for there is a .txt"]}),
    (None, {"caption": ["a", "list"]}),
    (None, {"caption": {"en": "an object"}}),
    (None, {"text": 7}),
    (None, {"prompt": "in another field"}),
    (None, {"prompt": "again"}),
    (None, {"captions": ["a", "b"]}),
    (None, {"caption": None, "score": 1, "note": 'the word "prompt": is no field'}),
    (None, {"caption": "  "}),
)
"""(.txt, .json) of each video, as data sets have them."""

COUNTED = Captions(rows=12, empty=9, not_text=4, unread={"prompt": 2, "captions": 1})
LINE = "3 of 12 rows; 4 are not text; 1 have `captions`, which is not read; 2 have `prompt`, which is not read"


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    output, made, done = Storage(str(tmp_path / "out")), spec(), {}
    write_spec(output, made)
    for video, (text, fields) in enumerate(SIDECARS):
        caption, extra = parse_sidecars(text, None if fields is None else json.dumps(fields).encode())
        base = latent(video, 0)
        facts = replace(base.facts, id=clip_id(SHARD, video, 0), caption=caption, extra=extra)
        stage(replace(base, id=replace(base.id, shard=SHARD), facts=facts), output)
        done[video, 0] = 1
    whole = CompleteShard(name=SHARD, planned=len(SIDECARS), latents=done, rejections={})
    assert not commit(output, made.to_json(), whole).missing
    seal(output, [SHARD])
    return output


def test_captions_are_counted_with_what_is_in_their_place(output: Storage) -> None:
    counted = tally(output, [SHARD], {}).captions
    assert counted == COUNTED
    assert counted.line() == LINE
    assert counted + counted == Captions(rows=24, empty=18, not_text=8, unread={"prompt": 4, "captions": 2})


def test_status_says_it(output: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--output", output.uri]) == 0
    assert f"captions {LINE}" in re.sub(r" +", " ", capsys.readouterr().out)
    assert command.main(["--output", output.uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["captions"] == asdict(COUNTED)


def test_the_summary_of_a_run_warns_above_a_tenth() -> None:
    def table(empty: int) -> str:
        captions = Captions(rows=100, empty=empty)
        return Summary(
            planned_shards=1, done_shards=1, planned=100, latents=100, rejected={}, latent_bytes=1, captions=captions
        ).table()

    assert "captions  90 of 100 rows" in table(10)
    assert "warning" not in table(10)
    assert "warning   11 of 100 captions (11%) are empty" in table(11)
