"""The LTX-2 trainer: `PrecomputedDataset` of ltx_trainer.datasets. FastVideo reads the same files for LTX-2.

    .precomputed/latents/<shard>/<id>.pt      {"latents": [C, F, H, W], "num_frames": F, "height": H, "width": W, "fps"}
    .precomputed/conditions/<shard>/<id>.pt   {"video_prompt_embeds": [S, E], "prompt_attention_mask": bool [S]}

The latents are means, scaled; num_frames, height and width count latent cells (scripts/process_videos.py at 400fd31).
Prompts are padded on the left, as its tokenizer pads, to a multiple of 128 tokens: its connector puts learned registers
in place of the padding, and asserts that number (embeddings_connector.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from pipeline.export.families import LTX_2
from pipeline.export.recipes import GEMMA_FEATURES
from pipeline.export.row import ExportRow
from pipeline.export.trainer import Counts, Piece, Trainer, put_each, saved, shape_name
from pipeline.storage import Storage

ROOT = ".precomputed"
REGISTERS = 128
"""Learned registers of the connector."""


def write(piece: Piece, rows: Iterator[ExportRow], into: Storage) -> Counts:
    """Put two files for each row: first the conditions, because the trainer looks for those of each latent."""
    counts = Counts()

    def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for row in rows:
            counts[shape_name(row.latent.shape)] += 1
            text, mask = row.padded_text(left=True)
            conditions = {"video_prompt_embeds": text, "prompt_attention_mask": mask}
            _, num_frames, height, width = row.latent.shape
            sizes = {"num_frames": num_frames, "height": height, "width": width, "fps": row.fps}
            yield f"{ROOT}/conditions/{piece.name}/{row.id}.pt", partial(saved, conditions)
            yield f"{ROOT}/latents/{piece.name}/{row.id}.pt", partial(saved, {"latents": row.latent} | sizes)

    put_each(into, files())
    return counts


TRAINER = Trainer(
    title="LTX-2 trainer",
    takes={LTX_2: GEMMA_FEATURES},
    mixed="its batches do not sort by shape: set batch_size 1",
    text_step=REGISTERS,
    write=write,
)
