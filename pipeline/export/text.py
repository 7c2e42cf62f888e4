"""Check that the text of an output suits a trainer."""

from __future__ import annotations

from latentmill.dataset import LatentDataset
from pipeline.errors import ConfigError
from pipeline.export.trainer import Trainer


def check_text(latents: LatentDataset, trainer: Trainer, num_rows: int) -> None:
    """Check the text of the selected rows.

    Args:
        latents: the rows that have an embedding.
        num_rows: how many rows were selected, with and without one.

    Raises:
        ConfigError: rows lack an embedding, or the trainer cannot take it.
    """
    text = latents.text
    assert text is not None
    if lacking := num_rows - len(latents):
        raise ConfigError(
            f"--text {text.name!r} has no embedding for {lacking} of {num_rows} rows, because it was made with "
            "--drop-empty; leave them out with --where 'caption != None'"
        )
    if trainer.text_step > 1 and text.spec["max_length"] % trainer.text_step:
        raise ConfigError(
            f"{trainer.title} takes prompts of a multiple of {trainer.text_step} tokens, and --text {text.name!r} has "
            f"--max-length {text.spec['max_length']}"
        )
    if trainer.takes and text.spec["pad_tokens"] != trainer.pad_tokens:
        takes, has = ("with", "without") if trainer.pad_tokens else ("without", "with")
        raise ConfigError(
            f"{trainer.title} takes embeddings made {takes} --pad-tokens, and --text {text.name!r} was made {has}"
        )
    if trainer.needs_caption and text.spec["caption_column"] != "caption":
        raise ConfigError(
            f"{trainer.title} finds an embedding by the caption, and --text {text.name!r} was made of "
            f"{text.spec['caption_column']!r}"
        )
