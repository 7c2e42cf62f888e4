"""Laws: what is staged is what stands in the data file; its bytes depend on the parts alone; killed anywhere between
two steps, the next run ends with the same files."""

import io
import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentmill import checksum
from latentmill.format import footer_of
from pipeline.output.commit import clips_ahead, commit, derive, seal, tidy
from pipeline.output.layout import part_path, verdict_path
from pipeline.output.parts import MissingPartError, join, read_clip, read_verdict, stage
from pipeline.output.shard_file import holds
from pipeline.output.tally import tally
from pipeline.receipts import ClipsReceipt, PartReceipt, RejectionReceipt
from pipeline.records import ChunkId, CompleteShard, Latent, Rejection
from pipeline.settings.spec import LatentRule
from pipeline.storage import Storage
from pipeline.storage.parallel import read_ahead
from tests.outputs import make_output
from tests.small import latent, spec
from tests.sources import make_tar
from tests.videos import make_video

SPEC = spec().to_json()
REJECTION = Rejection(reason="corrupt", stage="decode", message="m", key="key2", uri="s.tar#key2.mp4", start="0")
SHARD = CompleteShard(name="s", planned=4, latents={(0, 0): 1, (0, 1): 2, (1, 0): 1}, rejections={(2, 0): REJECTION})
PARTS = [latent(0, 0), latent(0, 1, 0, 2), latent(0, 1, 1, 2), latent(1, 0, shape=(2, 1, 2, 2))]


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def put_parts(output: Storage, parts: list[Latent] = PARTS) -> None:
    for part in parts:
        assert isinstance(stage(part, output), PartReceipt)


def files(output: Storage) -> dict[str, bytes]:
    return {entry.path: output.read(entry.path) for entry in output.list()}


def test_a_part_comes_back_as_it_was_staged(output: Storage) -> None:
    put_parts(output)
    assert read_clip(output, "s", 0, 0, 1) == PARTS[0]
    whole = read_clip(output, "s", 0, 1, 2)
    assert whole == join([PARTS[1], PARTS[2]])
    assert whole.shape == (2, 2, 2, 3)
    arrays = [np.frombuffer(part.payload, "<u2").reshape(part.shape) for part in (PARTS[1], PARTS[2])]
    np.testing.assert_array_equal(np.frombuffer(whole.payload, "<u2").reshape(whole.shape), np.concatenate(arrays, 1))
    assert whole.facts.num_repaired == 1
    assert whole.facts.timestamps == (1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75)


@pytest.mark.parametrize("damage", [b"", b"not arrow"])
def test_a_damaged_part_counts_as_missing(output: Storage, damage: bytes) -> None:
    put_parts(output)
    output.put(part_path(ChunkId(shard="s", video=0, clip=0)), damage)
    with pytest.raises(MissingPartError, match="damaged"):
        read_clip(output, "s", 0, 0, 1)


def test_no_flipped_bit_in_a_staged_file_passes(output: Storage, tmp_path: Path) -> None:
    """2,000 flips all over the file, its checksum too; nothing parses what was flipped."""
    put_parts(output)
    stage(RejectionReceipt(id=ChunkId(shard="s", video=2, clip=0), rejection=REJECTION, verdict=True), output)
    rng = random.Random(0)
    for file, flips, read in (
        (part_path(ChunkId(shard="s", video=0, clip=0)), 1_800, lambda: read_clip(output, "s", 0, 0, 1)),
        (verdict_path("s", 2, 0), 200, lambda: read_verdict(output, "s", 2, 0)),
    ):
        path = tmp_path / "out" / file
        data = path.read_bytes()
        for _ in range(flips):
            flipped, bit = bytearray(data), rng.randrange(8 * len(data))
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(flipped))
            with pytest.raises(MissingPartError, match="checksum"):
                read()
        path.write_bytes(data)
        read()


def test_a_part_without_a_checksum_as_older_versions_staged_it_is_not_trusted(output: Storage) -> None:
    put_parts(output)
    path = part_path(ChunkId(shard="s", video=0, clip=0))
    output.put(path, bytes(checksum.strip(output.read(path))))
    with pytest.raises(MissingPartError, match="checksum"):
        read_clip(output, "s", 0, 0, 1)


def test_a_sound_part_of_other_fields_is_not_taken(output: Storage) -> None:
    output.put(part_path(ChunkId(shard="s", video=0, clip=0)), checksum.append(b"what a later version may stage"))
    with pytest.raises(MissingPartError, match="another version"):
        read_clip(output, "s", 0, 0, 1)


def test_verdicts_are_staged_and_other_receipts_pass(output: Storage) -> None:
    verdict = RejectionReceipt(id=ChunkId(shard="s", video=2, clip=0), rejection=REJECTION, verdict=True)
    assert stage(verdict, output) == verdict
    assert read_verdict(output, "s", 2, 0) == REJECTION
    stage(ClipsReceipt(shard="s", video=2, count=1), output)
    assert len(list(output.list("_staging/s/"))) == 1


def test_the_data_file_holds_the_whole_truth_in_source_order(output: Storage) -> None:
    put_parts(output)
    committed = commit(output, SPEC, SHARD)
    assert (committed.missing, committed.adopted) == ((), False)
    data = io.BytesIO(output.read("data/s.parquet"))
    rows = pq.read_table(data).to_pylist()
    assert [(row["video_index"], row["clip_index"]) for row in rows] == [(0, 0), (0, 1), (1, 0)]
    assert [row["latent"] for row in rows] == [read.payload for read in (PARTS[0], join(PARTS[1:3]), PARTS[3])]
    found, footer = footer_of(data)
    assert found == SPEC
    assert footer["planned"] == 4 == len(rows) + len(footer["rejections"])
    assert footer["rejections"][0]["reason"] == "corrupt"
    assert json.loads(output.read("rejected/s.jsonl")) == footer["rejections"][0]
    assert not list(output.list("_staging/s/"))


@pytest.mark.parametrize("format_", ["parquet", "npy"])
def test_the_index_gives_the_exact_bytes_of_every_latent(output: Storage, format_: str) -> None:
    put_parts(output)
    commit(output, spec(latent=LatentRule(format=format_)).to_json(), SHARD)  # type: ignore[arg-type]
    index = pq.read_table(io.BytesIO(output.read("index/s.parquet"))).to_pylist()
    expected = [PARTS[0].payload, join(PARTS[1:3]).payload, PARTS[3].payload]
    ranges = [(row["file"], row["byte_offset"], row["byte_offset"] + row["byte_length"]) for row in index]
    assert [output.read(file, start, stop) for file, start, stop in ranges] == expected


def test_npy_arrays_load_with_numpy_and_are_named_by_content(output: Storage, tmp_path: Path) -> None:
    put_parts(output)
    commit(output, spec(latent=LatentRule(format="npy")).to_json(), SHARD)
    arrays = {path.name: np.load(path) for path in (tmp_path / "out" / "data").glob("*.npy")}
    assert sorted(array.shape for array in arrays.values()) == [(1, 2, 1, 2, 2), (1, 2, 1, 2, 3), (1, 2, 2, 2, 3)]
    for row in pq.read_table(tmp_path / "out" / "data" / "s.parquet").to_pylist():
        array = arrays[Path(row["npy_file"]).name][row["npy_row"]]
        assert row["latent"] is None
        assert list(array.shape) == row["latent_shape"]


@pytest.mark.parametrize("format_", ["parquet", "npy"])
def test_the_same_parts_give_the_same_bytes(tmp_path: Path, format_: str) -> None:
    outputs = []
    for name, order in (("a", PARTS), ("b", PARTS[::-1])):
        output = Storage(str(tmp_path / name))
        put_parts(output, order)
        commit(output, spec(latent=LatentRule(format=format_)).to_json(), SHARD)  # type: ignore[arg-type]
        outputs.append(files(output))
    assert outputs[0] == outputs[1]


def test_a_lost_part_opens_its_clip_again_and_commits_nothing(output: Storage) -> None:
    put_parts(output, [PARTS[0], PARTS[2]])
    assert commit(output, SPEC, SHARD).missing == ((0, 1), (1, 0))
    assert not output.exists("data/s.parquet")
    assert len(list(output.list("_staging/s/"))) == 2


def test_a_damaged_part_is_not_taken_for_staged_again(output: Storage) -> None:
    put_parts(output)
    output.put(part_path(ChunkId(shard="s", video=0, clip=0)), b"")
    assert commit(output, SPEC, SHARD).missing == ((0, 0),)
    assert not output.exists(part_path(ChunkId(shard="s", video=0, clip=0)))
    assert len(list(output.list("_staging/s/"))) == len(PARTS) - 1


def test_a_committed_shard_without_its_index_is_counted_and_sealed(output: Storage) -> None:
    """The moment between a data file and its index, as another process sees it."""
    put_parts(output)
    commit(output, SPEC, SHARD)
    whole = tally(output, ["s"], {})
    output.delete("index/s.parquet")
    output.delete("rejected/s.jsonl")
    assert tally(output, ["s"], {}) == whole
    assert not output.exists("index/s.parquet")
    assert seal(output, ["s"]) == whole.latents


def test_repeats_are_counted_on_a_grid_and_where_native_frames_were_padded() -> None:
    assert holds([0, 0, 1], "0", "2") == (1, 0.5)
    assert holds([0, 0.5, 0.5, 0.5], "0", None) == (2, 0.0)


def test_a_row_tells_enough_to_find_the_same_pixels_again(tmp_path: Path) -> None:
    """Four frames a second on a grid of eight, turned: every second frame is a repeat."""
    video = make_video(num_frames=8, fps=4, width=96, height=64, rotation=90)
    (tmp_path / "a.tar").write_bytes(make_tar([("a.mp4", video), ("a.json", b'{"caption": "c", "n": [1]}')]))
    make_output(tmp_path / "a.tar", tmp_path / "out")
    (row,) = pq.read_table(tmp_path / "out/data").drop_columns(["latent", "latent_crc32"]).to_pylist()
    assert row["source_uri"] == f"{tmp_path}/a.tar#a.mp4"
    assert (row["key"], row["caption"], json.loads(row["extra_json"])) == ("a", "c", {"n": [1]})
    assert (row["start_sec"], row["end_sec"], row["fps"], row["num_frames"]) == (0, 9 / 8, 8, 9)
    assert row["timestamps_sec"] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]
    assert (row["num_duplicates"], row["longest_hold_sec"], row["num_repaired"]) == (4, 0.125, 0)
    source = json.loads(row["source_json"])
    assert (source["codec"], source["width"], source["height"], source["rotation"]) == ("h264", 96, 64, 90)
    assert (source["display_width"], source["display_height"], source["sar"]) == (64, 96, "1/1")
    assert (source["crop"], source["placed"]) == ([26, 0, 42, 64], [0, 0, 48, 32])
    assert {"colorspace", "color_range", "color_trc", "color_primaries", "pix_fmt", "interlaced"} <= source.keys()


def test_a_loser_adopts_the_winners_file(output: Storage, caplog: pytest.LogCaptureFixture) -> None:
    put_parts(output)
    commit(output, SPEC, SHARD)
    before = output.read("data/s.parquet")
    assert commit(output, SPEC, SHARD).adopted  # its parts are gone
    put_parts(output, [latent(0, 0), latent(0, 1, 0, 2), latent(0, 1, 0, 2), latent(1, 0)])
    put_parts(output, [PARTS[2]])
    assert commit(output, SPEC, SHARD).adopted  # its bytes differ
    assert "other bytes" in caplog.text
    assert output.read("data/s.parquet") == before


def test_a_run_whose_parts_another_run_swept_adopts_its_file_and_sweeps_the_rest(output: Storage) -> None:
    put_parts(output)
    commit(output, SPEC, SHARD)
    theirs = output.read("data/s.parquet")
    put_parts(output, PARTS[:1])
    assert commit(output, SPEC, SHARD).adopted
    assert output.read("data/s.parquet") == theirs
    assert not list(output.list("_staging/"))


def test_tidy_makes_what_a_killed_run_left_undone(output: Storage) -> None:
    put_parts(output)
    commit(output, SPEC, SHARD)
    whole = files(output)
    output.delete("index/s.parquet")
    output.delete("rejected/s.jsonl")
    put_parts(output)
    output.put("_claims/s", b"of a run that was killed between commit and release")
    tidy(output, done={"s"}, leftovers=("s",))
    assert files(output) == whole


def test_tidy_leaves_the_claims_on_open_shards_and_on_texts(output: Storage) -> None:
    put_parts(output)
    commit(output, SPEC, SHARD)
    claims = ["_claims/open", "_claims/text/t5/s"]
    for path in claims:
        output.put(path, b"of a run")
    tidy(output, done={"s"}, leftovers=())
    assert [entry.path for entry in output.list("_claims/")] == claims


def test_seal_joins_the_indexes(output: Storage) -> None:
    put_parts(output)
    commit(output, SPEC, SHARD)
    derive(output, "s")
    assert seal(output, ["s"]) == 3
    assert pq.read_table(io.BytesIO(output.read("index.parquet"))).num_rows == 3
    assert seal(output, []) == 0


def test_an_empty_shard_commits_an_empty_file(output: Storage) -> None:
    commit(output, SPEC, CompleteShard(name="s", planned=0, latents={}, rejections={}))
    assert pq.read_table(io.BytesIO(output.read("data/s.parquet"))).num_rows == 0


@pytest.mark.parametrize("ahead", [1, 3])
def test_what_is_read_ahead_comes_in_order_and_is_little(ahead: int) -> None:
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        return number

    for number, result in enumerate(read_ahead((partial(read, n) for n in range(10)), ahead)):
        assert result.result() == number
        assert len(begun) <= number + ahead


@pytest.mark.parametrize(
    ("staged_bytes", "num_clips", "expected"), [(0, 0, 1), (64, 64, 16), (1 << 30, 64, 4), (1 << 30, 2, 1)]
)
def test_large_clips_are_not_read_ahead(staged_bytes: int, num_clips: int, expected: int) -> None:
    assert clips_ahead(staged_bytes, num_clips) == expected
