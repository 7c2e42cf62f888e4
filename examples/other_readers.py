"""Read an output without latentmill: its data files are plain Parquet, and its index is a table.

    python examples/other_readers.py --output demo/latents/tars

Each reader that is installed takes the first latent and counts the rows; the others are named.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import pyarrow.dataset
import torch

Row = dict[str, Any]


def with_pyarrow(output: str) -> tuple[int, Row]:
    data = pyarrow.dataset.dataset(f"{output}/data", format="parquet", exclude_invalid_files=True)
    return data.count_rows(), data.head(1).to_pylist()[0]


def with_datasets(output: str) -> tuple[int, Row]:
    import datasets

    data = datasets.load_dataset("parquet", data_files=f"{output}/data/*.parquet", split="train", streaming=True)
    rows = list(data.select_columns(["id", "latent", "latent_shape", "latent_dtype"]))
    return len(rows), rows[0]


def with_polars(output: str) -> tuple[int, Row]:
    import polars

    data = polars.scan_parquet(f"{output}/data/*.parquet")
    return data.select(polars.len()).collect().item(), data.head(1).collect().to_dicts()[0]


def with_duckdb(output: str) -> tuple[int, Row]:
    import duckdb

    files = f"'{output}/data/*.parquet'"
    ((count,),) = duckdb.sql(f"select count(*) from {files}").fetchall()
    columns = ["id", "latent", "latent_shape", "latent_dtype"]
    (values,) = duckdb.sql(f"select {', '.join(columns)} from {files} limit 1").fetchall()
    return count, dict(zip(columns, values, strict=True))


READERS: dict[str, Callable[[str], tuple[int, Row]]] = {
    "pyarrow": with_pyarrow,
    "datasets": with_datasets,
    "polars": with_polars,
    "duckdb": with_duckdb,
}


def tensor(row: Row) -> torch.Tensor:
    """The latent of a row, [C, T', H', W']: the bytes are little-endian, in C order."""
    dtype = getattr(torch, row["latent_dtype"])
    return torch.frombuffer(bytearray(row["latent"]), dtype=dtype).reshape(list(row["latent_shape"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="demo/latents/tars", help="of --format parquet")
    args = parser.parse_args()
    for name, read in READERS.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed")
            continue
        count, row = read(args.output)
        latent = tensor(row)
        print(f"{name}: {count} rows, {row['id']} {tuple(latent.shape)} {latent.dtype} sum {latent.float().sum():.4f}")


if __name__ == "__main__":
    main()
