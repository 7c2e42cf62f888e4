"""Law of an import: any row of any source ends as a clip or as a rejection, and the others are imported."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import latentmill
from pipeline.errors import ConfigError
from pipeline.sources.latents import BadRowError, fps_of
from tests.exports.test_import import taken

GOOD = torch.ones(4, 3, 2, 4)
CLEAN = {"latent": GOOD, "fps": 8}

ODD: dict[str, Any] = {
    "sparse": GOOD.to_sparse(),
    "meta": torch.ones(4, 3, 2, 4, device="meta"),
    "sparse in a dict": CLEAN | {"latent": GOOD.to_sparse()},
    "fps inf": CLEAN | {"fps": float("inf")},
    "fps tiny": CLEAN | {"fps": 1e-9},
    "fps huge": CLEAN | {"fps": 10**400},
    "fps negative": CLEAN | {"fps": -8},
    "fps text": CLEAN | {"fps": "fast"},
    "caption of half a character": CLEAN | {"caption": "\ud800"},
    "extra of half a character": CLEAN | {"note": "\udfff"},
    "no values": torch.ones(4, 0, 2, 4),
    "repeated values": torch.ones(1).expand(4, 1 << 12, 1 << 9, 1 << 9),
    "of integers": torch.ones(4, 3, 2, 4, dtype=torch.int64),
    "complex": torch.ones(4, 3, 2, 4, dtype=torch.complex64),
    "nested lists": [[1, 2]],
    "nothing": None,
    "nan": GOOD * float("nan"),
}
"""What a torch file holds that is no clip."""

TAKEN: dict[str, Any] = {
    "with gradient": CLEAN | {"latent": GOOD.clone().requires_grad_()},
    "parameter": torch.nn.Parameter(GOOD),
    "keys that are no text": CLEAN | {(1, 2): "x", 7: 8},
    "not contiguous": GOOD.transpose(0, 1).contiguous().transpose(0, 1),
    "fps nan": CLEAN | {"fps": float("nan")},
    "extra nan": CLEAN | {"score": float("nan")},
    "a batch of one": GOOD[None],
}
"""What is unusual and still a clip."""


@pytest.mark.filterwarnings("ignore")
def test_no_torch_file_ends_an_import(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, content in {**ODD, **TAKEN, "z": GOOD}.items():
        torch.save(content, folder / f"{name}.pt")
    whole = (folder / "z.pt").read_bytes()
    garbage = {
        "empty": b"",
        "pickled": b"\x80\x02}q\x00.",
        "call": b"cos\nsystem\n(S'x'\ntR.",
        "stack": b"\x80\x020",
        "memo": b"h\x07.",
    }
    rng = np.random.default_rng(0)
    for i in range(40):
        flipped = bytearray(whole[: rng.integers(1, len(whole))] if i % 2 else whole)
        for at in rng.integers(0, len(flipped), 3):
            flipped[at] ^= 1 << rng.integers(8)
        garbage[f"flipped{i}"] = bytes(flipped)
    for name, data in garbage.items():
        (folder / f"{name}.pt").write_bytes(data)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.pt")).write_bytes(whole)
    summary = taken(folder, tmp_path / "out", "pt", shard_size=7)
    assert (summary.done_shards, summary.open_shards) == (summary.planned_shards, {})
    keys = set(latentmill.open(tmp_path / "out").to_arrow()["key"].to_pylist())
    assert {f"{name}.pt" for name in TAKEN} | {"z.pt"} <= keys
    assert not {f"{name}.pt" for name in ODD} & keys
    assert summary.latents + sum(summary.rejected.values()) == len(list(folder.iterdir()))


def column(name: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    if name != "caption":
        return pa.array(values, kind)
    data = pa.array([value if isinstance(value, bytes) else value.encode() for value in values], pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), data.buffers())  # which may not be UTF-8


SHAPES = [
    [4, 3, 2],
    [-4, 3, 2, -4],
    [4, -3, -2, 4],
    [],
    [4, 3, 2, 5],
    [0, 3, 2, 4],
    [2**40, 2**40, 2, 4],
    [4, 3, 2, 4, 1],
]


@pytest.mark.parametrize(
    ("kind", "odd"), [(pa.float64(), [float("inf"), -8.0, 1e-9, 1e300]), (pa.string(), ["8", "x", "", "1/0"])]
)
def test_no_row_of_fastvideo_ends_an_import(tmp_path: Path, kind: pa.DataType, odd: list[Any]) -> None:
    shapes = [[4, 3, 2, 4], *SHAPES, *[[4, 3, 2, 4]] * (len(odd) + 2)]
    count = len(shapes)
    rows = {
        "id": [f"r{i}" for i in range(count)],
        "vae_latent_bytes": [GOOD.numpy().tobytes()] * count,
        "vae_latent_shape": shapes,
        "vae_latent_dtype": ["float32"] * count,
        "caption": ["one"] * (count - 1) + [b"caf\xe9"],
        "fps": [None] * (count - 1 - len(odd)) + odd + [None],
        "duration_sec": [2**62 if i == count - 2 - len(odd) else 0 for i in range(count)],
    }
    kinds = {"vae_latent_shape": pa.list_(pa.int64()), "fps": kind, "duration_sec": pa.timestamp("ms")}
    (tmp_path / "files").mkdir()
    table = pa.table({name: column(name, values, kinds.get(name)) for name, values in rows.items()})
    pq.write_table(table, tmp_path / "files/a.parquet", row_group_size=3)
    numbers = pa.table({**{name: table[name][:1] for name in table.column_names if name != "caption"}, "caption": [7]})
    pq.write_table(numbers, tmp_path / "files/b.parquet")
    summary = taken(tmp_path / "files", tmp_path / "out", "fastvideo", shard_size=4)
    assert (summary.done_shards, summary.open_shards) == (summary.planned_shards, {})
    assert summary.latents + sum(summary.rejected.values()) == count + 1
    assert summary.latents == 1


def test_an_import_goes_by_the_first_clip_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"no torch file")
    with pytest.raises(ConfigError, match="no first latent to go by: UnpicklingError"):
        taken(tmp_path, tmp_path / "out", "pt")
    torch.save(GOOD, tmp_path / "b.pt")
    summary = taken(tmp_path, tmp_path / "out", "pt")
    assert (summary.latents, summary.rejected) == (1, {"unreadable": 1})


@pytest.mark.parametrize(
    ("value", "rate"), [(24, "24"), (23.976, "23976/1000"), (29.97002997, "30000/1001"), (0, None)]
)
def test_a_stated_rate_is_a_fraction(value: object, rate: str | None) -> None:
    found = fps_of(value)
    assert (found and float(Fraction(found))) == (rate and pytest.approx(float(Fraction(rate)), rel=1e-6))


@pytest.mark.parametrize("value", [True, -1, 1e-9, 1001, float("inf"), 10**400, "24", [24], torch.ones(())])
def test_other_rates_are_refused(value: object) -> None:
    with pytest.raises(BadRowError, match=r"fps must be a number from 0.001 to 1000, got"):
        fps_of(value)
