"""Any row of any table ends as a clip or as a rejection, whatever types and values it holds, and the same each time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.shards import TableRange
from pipeline.sources.listing import list_source
from pipeline.sources.samples import MAX_NESTING, parse_json
from tests.sources import seen

_WHOLE = st.integers(-(2**63), 2**63 - 1)
_SMALL = st.integers(-(2**31), 2**31 - 1)
TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    *((pa.timestamp(unit, zone), _WHOLE) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "No/where")),
    *((pa.duration(unit), _WHOLE) for unit in ("s", "ms", "us", "ns")),
    (pa.date32(), _SMALL),
    (pa.date64(), _WHOLE),
    (pa.time64("us"), _WHOLE),
    (pa.time32("ms"), _SMALL),
    (pa.float64(), st.floats()),
    (pa.decimal128(38, 0), st.integers(-(10**37), 10**37)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text()),
    (pa.binary(), st.binary()),
]


@st.composite
def columns(draw: st.DrawFn) -> pa.Array:
    """A column of three values of some type, perhaps in a list, a struct or a map."""
    kind, values = draw(st.sampled_from(TYPES))
    rows = draw(st.lists(st.none() | values, min_size=3, max_size=3))
    if pa.types.is_temporal(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        flat = pa.array(rows, width).view(kind)
    else:
        flat = pa.array(rows, kind)
    match draw(st.sampled_from(["flat", "list", "struct", "map"])):
        case "list":
            return pa.ListArray.from_arrays(pa.array([0, 1, 3, 3], pa.int32()), flat)
        case "struct":
            return pa.StructArray.from_arrays([flat, flat], ["a", draw(st.sampled_from(["a", "b"]))])
        case "map":
            return pa.MapArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), pa.array(["k", "k", ""]), flat)
    return flat


@given(column=columns(), name=st.sampled_from(["x", "start", "end", "caption"]))
@settings(max_examples=100, deadline=None)
def test_any_row_of_any_parquet_table_ends(
    tmp_path_factory: pytest.TempPathFactory, column: pa.Array, name: str
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    try:
        pq.write_table(pa.table({"video": ["a.mp4", "b.mp4", "c.mp4"], name: column}), path, store_schema=True)
    except pa.ArrowException:  # no such thing in Parquet
        return
    found = seen(path)
    assert len(found) == 3
    assert {reason for _, reason in found} <= {"video", "bad_row"}


def test_dates_out_of_range_cost_their_own_row(tmp_path: Path) -> None:
    far = pa.array([0, 2**62, 0], pa.int64()).view(pa.timestamp("us"))
    days = pa.array([2**31 - 1, 0, 0], pa.int32()).view(pa.date32())
    pq.write_table(pa.table({"video": ["a", "b", "c"], "at": far, "day": days}), tmp_path / "t.parquet")
    assert [reason for _, reason in seen(tmp_path / "t.parquet")] == ["bad_row", "bad_row", "video"]


def test_a_row_group_with_fewer_rows_than_it_says_is_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"video": list("abcd")}), path)
    (shard,) = list_source(str(path), shard_size=64)
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: (b.slice(0, 3) for b in whole(*a, **k)))
    assert [reason for _, reason in seen(path)] == ["video"] * 3 + ["bad_row"]
    assert isinstance(shard.members, TableRange)
    assert shard.members.rows == 4


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"[":', "}]")])
def test_nesting_is_bounded_by_a_number_and_not_by_the_stack(opening: str, closing: str) -> None:
    def nested(depth: int) -> str:
        count = depth // (opening.count("[{") + 1)
        return opening * count + "1" + closing * count

    def deep_in_the_stack(frames: int, depth: int) -> bool:
        if frames:
            return deep_in_the_stack(frames - 1, depth)
        try:
            parse_json(nested(depth))
        except ValueError as error:
            return "nested deeper than" not in str(error)
        return True

    for frames in (0, sys.getrecursionlimit() - 300):
        assert deep_in_the_stack(frames, MAX_NESTING)
        for depth in (MAX_NESTING + 2, 900, 10**5):
            assert not deep_in_the_stack(frames, depth)
    brackets = json.dumps({"caption": '[{"\\' * 500})
    assert parse_json(brackets) == json.loads(brackets)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_two_columns_of_one_name_are_a_configuration_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        path.write_text("video,n,video\na.mp4,1,b.mp4\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["video", "n", "video"]), path)
    with pytest.raises(ConfigError, match=r"more than one column 'video'"):
        list(list_source(str(path), shard_size=64))
