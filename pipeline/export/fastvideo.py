"""FastVideo: `LatentsParquetMapStyleDataset` of fastvideo.dataset.parquet_dataset_map_style.

    <shard>.parquet     one row a clip, in row groups of one row: SCHEMA, which is its pyarrow_schema_t2v

Latents are means as the VAE gives them: the trainer scales them itself (normalize_dit_input of training_utils.py at
2f3d407). Its collator reads float32 whatever the dtype column says, so all tensors are float32. It stacks any rows, so
all have one shape. It pads embeddings itself and takes their length for the mask, so they have no padding. It walks
every Parquet file below its root, and finds a row by adding up row groups: with one row in each it reads that row only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from pipeline.export.families import HUNYUAN, WAN_21, WAN_22
from pipeline.export.recipes import LLAMA_TEMPLATE, WAN_RAW
from pipeline.export.row import Conversion, ExportRow
from pipeline.export.trainer import Counts, Piece, Trainer, shape_name
from pipeline.export.whole_file import whole_file
from pipeline.storage import Storage


def _tensor(name: str) -> list[pa.Field]:
    return [
        pa.field(f"{name}_bytes", pa.binary()),
        pa.field(f"{name}_shape", pa.list_(pa.int64())),
        pa.field(f"{name}_dtype", pa.string()),
    ]


SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        *_tensor("vae_latent"),
        *_tensor("text_embedding"),
        pa.field("file_name", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("media_type", pa.string()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("num_frames", pa.int64()),
        pa.field("duration_sec", pa.float64()),
        pa.field("fps", pa.float64()),
    ]
)


def write(piece: Piece, rows: Iterator[ExportRow], into: Storage) -> Counts:
    """Put one Parquet file."""
    counts = Counts()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with (
        whole_file(into, f"{piece.name}.parquet") as file,
        pq.ParquetWriter(file, SCHEMA, **options) as writer,
    ):
        for row in rows:
            counts[shape_name(row.latent.shape)] += 1
            writer.write_table(pa.Table.from_pylist([_row(row)], SCHEMA))
    return counts


def _row(row: ExportRow) -> dict[str, Any]:
    assert row.text is not None
    facts: dict[str, Any] = {"id": row.id, "file_name": row.key, "caption": row.caption or "", "media_type": "video"}
    facts |= {"width": row.width, "height": row.height, "num_frames": row.num_frames}
    facts |= {"duration_sec": row.num_frames / row.fps, "fps": row.fps}
    return facts | _columns("vae_latent", row.latent) | _columns("text_embedding", row.text)


def _columns(name: str, tensor: Tensor) -> dict[str, Any]:
    values = tensor.float().numpy()
    return {f"{name}_bytes": values.tobytes(), f"{name}_shape": list(values.shape), f"{name}_dtype": "float32"}


TRAINER = Trainer(
    title="FastVideo",
    takes={WAN_21: WAN_RAW, WAN_22: WAN_RAW, HUNYUAN: LLAMA_TEMPLATE},
    conversion=Conversion(is_raw=True, dtype="float32"),
    one="shape",
    write=write,
)
