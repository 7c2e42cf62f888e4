"""NeMo Automodel: `TextToVideoDataset` of nemo_automodel.components.datasets.diffusion.

    <shard>/<id>.meta       {"video_latents": [1, C, T, H, W], "text_embeddings": [1, S, E]}, loaded with weights_only
    shards/<shard>.json     [{"cache_file", "bucket_resolution": [W, H], "aspect_ratio", ...}]
    metadata.json           {"shards": [...]}: written last, so a data set that is not whole does not open

Its Wan processor caches the mean, scaled, and embeddings with zeros after the last token (tools/diffusion/processors/
wan.py at 36044ad). Buckets know height and width only. `cache_file` is an absolute path where the export is on this
machine, else relative to the export: start the trainer in the folder with the copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pipeline.export.families import WAN_21, WAN_22
from pipeline.export.recipes import WAN_226
from pipeline.export.row import ExportRow
from pipeline.export.trainer import Counts, Piece, Trainer, local_path, put_each, saved
from pipeline.storage import Storage


def write(piece: Piece, rows: Iterator[ExportRow], into: Storage) -> Counts:
    """Put one file for each row, and the list of them."""
    counts, items = Counts(), list[dict[str, Any]]()

    def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for row in rows:
            path, aspect = f"{piece.name}/{row.id}.meta", row.width / row.height
            text, _ = row.padded_text()
            counts[f"{_aspect_name(aspect)}/{row.width}x{row.height}"] += 1
            item = {"cache_file": local_path(into, path), "bucket_resolution": [row.width, row.height]}
            items.append(item | {"aspect_ratio": aspect, "prompt": row.caption or "", "num_frames": row.num_frames})
            yield path, partial(saved, {"video_latents": row.latent[None], "text_embeddings": text[None]})

    put_each(into, files())
    into.put(_list_path(piece.name), json.dumps(items).encode())
    return counts


def finish(pieces: list[str], counts: Counts, into: Storage) -> None:
    """Put metadata.json."""
    metadata = {"shards": [_list_path(piece) for piece in pieces], "total_items": counts.total()}
    into.put("metadata.json", json.dumps(metadata).encode())


def _list_path(piece: str) -> str:
    return f"shards/{piece}.json"


def _aspect_name(aspect: float) -> str:
    """Return the trainer's name of an aspect ratio (base_dataset.py)."""
    return "tall" if aspect < 0.85 else "wide" if aspect > 1.18 else "square"


TRAINER = Trainer(
    title="NeMo Automodel", takes={WAN_21: WAN_226, WAN_22: WAN_226}, one="length", write=write, finish=finish
)
