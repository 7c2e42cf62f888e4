"""Other readers of the same latents, for `bench reader`. They are used if installed; none of them is a dependency."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

Epoch = Callable[[], Iterator[torch.Tensor]]


def peers(output: Path, folder: Path, batches: list[list[str]]) -> dict[str, Epoch]:
    """Return readers of the rows with these ids, in this order. Readers of other formats convert the data first."""
    files = sorted((output / "data").glob("*.parquet"))
    found: dict[str, Epoch] = {"Parquet, whole row groups": _row_groups(files, batches)}
    known: list[tuple[str, str, Callable[[], Epoch]]] = [
        ("datasets", "HF datasets, map-style", lambda: _datasets(files, folder, batches)),
        ("datasets", "HF datasets, stream", lambda: _datasets_stream(files)),
        ("lance", "lance, take", lambda: _lance(files, folder, batches)),
        ("webdataset", "webdataset, in sequence", lambda: _webdataset(files, folder)),
        ("streaming", "mosaicml-streaming", lambda: _streaming(files, folder)),
    ]
    for module, name, make in known:
        if importlib.util.find_spec(module) is None:
            print(f"  {name}: not installed")
            continue
        try:
            found[name] = make()
        except Exception as error:
            print(f"  {name}: {type(error).__name__}: {error}")
    return found


def _tensor(payloads: list[bytes]) -> torch.Tensor:
    return torch.stack([torch.frombuffer(bytearray(payload), dtype=torch.uint8) for payload in payloads])


def _places(files: list[Path]) -> dict[str, tuple[int, int]]:
    """Return (file, row) of each id."""
    ids = [pq.read_table(file, columns=["id"])["id"].to_pylist() for file in files]
    return {id_: (i, row) for i, of_file in enumerate(ids) for row, id_ in enumerate(of_file)}


def _row_groups(files: list[Path], batches: list[list[str]]) -> Epoch:
    """Read a whole row group of 64 rows, the usual size, for each clip, as a plain Parquet reader does."""
    folder = files[0].parents[1] / "regrouped"
    folder.mkdir(exist_ok=True)
    places = _places(files)
    for file in files:
        pq.write_table(pq.read_table(file, columns=["id", "latent"]), folder / file.name, row_group_size=64)

    def epoch() -> Iterator[torch.Tensor]:
        opened = [pq.ParquetFile(folder / file.name, memory_map=True) for file in files]
        for batch in batches[: max(2, len(batches) // 16)]:  # slow, so only a part of the epoch is read
            payloads = []
            for id_ in batch:
                file, row = places[id_]
                group = opened[file].read_row_group(row // 64, columns=["latent"])
                payloads.append(group["latent"][row % 64].as_py())
            yield _tensor(payloads)

    return epoch


def _datasets(files: list[Path], folder: Path, batches: list[list[str]]) -> Epoch:
    import datasets

    datasets.disable_progress_bars()
    data = datasets.load_dataset(
        "parquet", data_files=[str(file) for file in files], cache_dir=str(folder / "hf"), split="train"
    )
    data = data.select_columns(["id", "latent"]).with_format("arrow")
    order = {id_: i for i, id_ in enumerate(id_ for ids in data.iter(64) for id_ in ids["id"].to_pylist())}

    def epoch() -> Iterator[torch.Tensor]:
        for batch in batches:
            table = data[[order[id_] for id_ in batch]]
            yield _tensor([value.as_py() for value in table["latent"]])

    return epoch


def _datasets_stream(files: list[Path]) -> Epoch:
    import datasets

    def epoch() -> Iterator[torch.Tensor]:
        data = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train", streaming=True)
        for batch in data.select_columns(["latent"]).shuffle(seed=0, buffer_size=16).iter(batch_size=4):
            yield _tensor(batch["latent"])

    return epoch


def _lance(files: list[Path], folder: Path, batches: list[list[str]]) -> Epoch:
    import lance

    place = str(folder / "latents.lance")
    schema = pa.schema([("id", pa.string()), ("latent", pa.large_binary())])
    tables = (pq.read_table(file, columns=["id", "latent"]).cast(schema) for file in files)
    lance.write_dataset((batch for table in tables for batch in table.to_batches()), place, schema=schema)
    data = lance.dataset(place)
    order = {id_: i for i, id_ in enumerate(data.to_table(columns=["id"])["id"].to_pylist())}

    def epoch() -> Iterator[torch.Tensor]:
        for batch in batches:
            table = data.take([order[id_] for id_ in batch], columns=["latent"])
            yield _tensor([value.as_py() for value in table["latent"]])

    return epoch


def _rows(files: list[Path]) -> Iterator[tuple[str, bytes]]:
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(8, columns=["id", "latent"]):
            for row in batch.to_pylist():
                yield row["id"], row["latent"]


def _webdataset(files: list[Path], folder: Path) -> Epoch:
    import webdataset

    place = folder / "latents.tar"
    with tarfile.open(place, "w") as tar:
        for id_, payload in _rows(files):
            info = tarfile.TarInfo(f"{id_}.bin")
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))

    def epoch() -> Iterator[torch.Tensor]:
        pending: list[bytes] = []
        for sample in webdataset.WebDataset(str(place), shardshuffle=False).shuffle(16):
            pending.append(sample["bin"])
            if len(pending) == 4:
                yield _tensor(pending)
                pending = []

    return epoch


def _streaming(files: list[Path], folder: Path) -> Epoch:
    import streaming

    place = str(folder / "mds")
    with streaming.MDSWriter(out=place, columns={"latent": "bytes"}, size_limit=1 << 27) as writer:
        for _, payload in _rows(files):
            writer.write({"latent": payload})
    data: Any = streaming.StreamingDataset(local=place, shuffle=True, batch_size=4)

    def epoch() -> Iterator[torch.Tensor]:
        pending: list[bytes] = []
        for sample in data:
            pending.append(sample["latent"])
            if len(pending) == 4:
                yield _tensor(pending)
                pending = []

    return epoch
