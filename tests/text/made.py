"""A text made without Ray: the stages of the job called one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from latentmill.format import text_path
from pipeline.storage import Storage
from pipeline.text import spec as specs
from pipeline.text.captions import open_shards, read_captions
from pipeline.text.checkpoint import TextCheckpoint, resolve
from pipeline.text.encoder import TextEncoder
from pipeline.text.job import TextJob
from pipeline.text.stages import text_file, wanted_of


def write_text(out: str | Path, encoder: Path, shards: Sequence[str] | None = None, **options: object) -> TextEncoder:
    """Write a text for these shards, or for all that lack it. Return the encoder."""
    settings = {"dtype": "float32", "name": "t5"} | options
    job = TextJob(output=str(out), encoder=str(encoder), **settings)  # type: ignore[arg-type]
    output, checkpoint = Storage(str(out)), TextCheckpoint.of(job)
    spec = resolve(job, checkpoint)
    specs.write(output, job.name, spec)
    made = TextEncoder(checkpoint, spec)
    for shard in open_shards(output, job.name)[0] if shards is None else shards:
        captions = read_captions(output, shard, job.caption_column)
        file, _ = text_file(spec, shard, captions, made(wanted_of(spec, shard, captions)))
        assert output.create(text_path(job.name, shard), file)
    return made
