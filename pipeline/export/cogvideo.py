"""CogVideo's own finetune/: `T2VDatasetWithResize` of finetune.datasets.t2v_dataset.

    cache/video_latent/<model>/<frames>x<H>x<W>/<id>.safetensors     "encoded_video" [C, F, H', W']
    cache/prompt_embeddings/<sha256 of the prompt>.safetensors       "prompt_embedding" [S, E]
    videos/<id>.mp4          empty: the trainer asks whether each is there, and decodes only those without a latent
    videos.txt, prompts.txt  one line a clip

The latents are samples, scaled (encode_video of lora_trainer.py at the head of 2026). The trainer reads one resolution,
its --train_resolution. A prompt is one line: line breaks in captions become spaces. T5 has read padding tokens as text
(--pad-tokens --max-length 226), as in the trainer's own cache (encode_text of the same file).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial

from pipeline.export.families import COGVIDEOX
from pipeline.export.recipes import T5_XXL
from pipeline.export.row import Conversion, ExportRow
from pipeline.export.tensor_file import tensor_file
from pipeline.export.trainer import Counts, Piece, Trainer, joined_lists, list_path, put_each
from pipeline.storage import Storage


def write(piece: Piece, rows: Iterator[ExportRow], into: Storage) -> Counts:
    """Put three files for each row, and the lists of them."""
    counts, prompts, videos = Counts(), list[str](), list[str]()

    def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for row in rows:
            prompt = " ".join((row.caption or "").splitlines()).strip()
            resolution = f"{row.num_frames}x{row.height}x{row.width}"
            counts[resolution] += 1
            prompts.append(prompt)
            videos.append(f"videos/{row.id}.mp4")
            assert row.text is not None
            name = hashlib.sha256(prompt.encode()).hexdigest()
            yield f"cache/prompt_embeddings/{name}.safetensors", partial(tensor_file, {"prompt_embedding": row.text})
            latent = {"encoded_video": row.latent}
            yield f"cache/video_latent/{piece.model}/{resolution}/{row.id}.safetensors", partial(tensor_file, latent)
            yield videos[-1], bytes

    put_each(into, files())
    for kind, lines in (("prompts", prompts), ("videos", videos)):
        into.put(list_path(piece.name, kind), "".join(f"{line}\n" for line in lines).encode())
    return counts


def finish(pieces: list[str], counts: Counts, into: Storage) -> None:
    """Put prompts.txt and videos.txt."""
    del counts
    for kind in ("prompts", "videos"):
        joined_lists(pieces, into, f"{kind}.txt", kind)


TRAINER = Trainer(
    title="CogVideo finetune",
    takes={COGVIDEOX: T5_XXL},
    conversion=Conversion(draw="sample"),
    one="shape",
    needs_caption=True,
    needs_model=True,
    write=write,
    finish=finish,
)
