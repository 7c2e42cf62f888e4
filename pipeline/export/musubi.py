"""musubi-tuner for Wan: `VideoDataset` of musubi_tuner.dataset.image_video_dataset.

    cache/<id>_00000-<frames>_<W>x<H>_wan.safetensors     "latents_<F>x<H'>x<W'>_<dtype>" [C, F, H', W']
    cache/<id>_wan_te.safetensors                         "varlen_t5_<dtype>" [S, E], without padding
    items.jsonl                                           {"video_path", "caption"} of each clip
    dataset.toml                                          for --dataset_config

The latents are means, scaled. dtypes have their names in torch: with others the keys of a batch are wrong, and nothing
raises. A clip without its text file is skipped with a warning, so that is written first. The trainer picks the bucket
by the size in the name: dataset.toml makes every size of the export a bucket of its own (enable_bucket with
bucket_no_upscale, and the largest area for resolution; bucket.py at 30c658c), as long as sizes are multiples of 16.
HunyuanVideo needs the embeddings of two encoders, and is not exported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from pipeline.export.families import WAN_21
from pipeline.export.recipes import WAN_512
from pipeline.export.row import ExportRow
from pipeline.export.tensor_file import tensor_file
from pipeline.export.trainer import Counts, Piece, Trainer, joined_lists, list_path, local_path, put_each
from pipeline.storage import Storage

ARCHITECTURE = "wan"
VERSION = "1.0.1"
"""Of the trainer's cache files (cache_io.py)."""


def write(piece: Piece, rows: Iterator[ExportRow], into: Storage) -> Counts:
    """Put two files for each row, and the list of them."""
    counts, items = Counts(), list[str]()

    def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for row in rows:
            assert row.text is not None
            counts[f"{row.width}x{row.height}x{row.num_frames}"] += 1
            caption, (_, frames, height, width) = row.caption or "", row.latent.shape
            items.append(json.dumps({"video_path": row.id, "caption": caption}))
            text = {f"varlen_t5_{_dtype(row.text)}": row.text}
            about = {"architecture": ARCHITECTURE, "format_version": VERSION}
            captioned = about | {"caption1": caption}
            yield f"cache/{row.id}_{ARCHITECTURE}_te.safetensors", partial(tensor_file, text, captioned)
            name = f"{row.id}_00000-{row.num_frames:03d}_{row.width:04d}x{row.height:04d}_{ARCHITECTURE}"
            latent = {f"latents_{frames}x{height}x{width}_{_dtype(row.latent)}": row.latent}
            sizes = {"width": str(row.width), "height": str(row.height), "frame_count": str(row.num_frames)}
            yield f"cache/{name}.safetensors", partial(tensor_file, latent, about | sizes)

    put_each(into, files())
    into.put(list_path(piece.name), "".join(f"{item}\n" for item in items).encode())
    return counts


def finish(pieces: list[str], counts: Counts, into: Storage) -> None:
    """Put items.jsonl and dataset.toml."""
    sizes = [tuple(map(int, bucket.split("x"))) for bucket in counts]
    width, height, _ = max(sizes, key=lambda size: size[0] * size[1])
    joined_lists(pieces, into, "items.jsonl")
    into.put(
        "dataset.toml",
        f"""[general]
resolution = [{width}, {height}]
enable_bucket = true
bucket_no_upscale = true
batch_size = 1

[[datasets]]
video_jsonl_file = {json.dumps(local_path(into, "items.jsonl"))}
cache_directory = {json.dumps(local_path(into, "cache"))}
target_frames = {sorted({num_frames for *_, num_frames in sizes})}
""".encode(),
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


TRAINER = Trainer(title="musubi-tuner", takes={WAN_21: WAN_512}, step=16, write=write, finish=finish)
