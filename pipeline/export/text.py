"""Check that the text of an output suits a trainer, and that its rows have captions."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from latentmill.dataset import LatentDataset
from pipeline.errors import ConfigError
from pipeline.export.families import family_of
from pipeline.export.trainer import Trainer
from pipeline.output.captions import Captions, of_texts
from pipeline.text.captions import values_of


def check_text(
    latents: LatentDataset, trainer: Trainer, selected: LatentDataset, *, where: str | None, any_text: bool
) -> str:
    """Check the text of the selected rows. Return what is to be said about a text that only `any_text` lets pass.

    Args:
        latents: the rows that have an embedding.
        selected: all rows, with and without one; `where` selected them.

    Raises:
        ConfigError: rows lack an embedding, or the trainer cannot take it, or its models learned from another text.
    """
    text = latents.text
    assert text is not None
    spec, name = text.spec, f"--text {text.name!r}"
    if lacking := len(selected) - len(latents):
        raise ConfigError(
            f"{name} has no embedding for {lacking} of {len(selected)} rows, because it was made with --drop-empty; "
            f"{_remedy(latents, selected, where)}"
        )
    family = family_of(latents.spec["vae"], trainer.takes)
    if family is None:
        return ""
    recipe = trainer.takes[family]
    how = "`latentmill text` makes no such text"
    if recipe.model_type:
        how = f"make one with `latentmill text --name NAME --encoder FOLDER {recipe.flags}`"
    if trainer.text_step > 1 and spec["max_length"] % trainer.text_step:
        raise ConfigError(
            f"{trainer.title} takes prompts of a multiple of {trainer.text_step} tokens, and {name} has --max-length "
            f"{spec['max_length']}"
        )
    if spec["pad_tokens"] != recipe.pad_tokens:
        takes, has = ("with", "without") if recipe.pad_tokens else ("without", "with")
        raise ConfigError(
            f"{trainer.title} takes embeddings made {takes} --pad-tokens, and {name} was made {has}: {how}"
        )
    if trainer.needs_caption and spec["caption_column"] != "caption":
        raise ConfigError(
            f"{trainer.title} finds an embedding by the caption, and {name} was made of {spec['caption_column']!r}"
        )
    if not (differences := "; ".join(recipe.differences(spec, _filled(selected, spec["caption_column"])))):
        return ""
    if any_text:
        return f"--any-text: {trainer.title} takes the text of {recipe.title}, and {name} is another: {differences}"
    raise ConfigError(
        f"{trainer.title} takes the text of {recipe.title}, and {name} is another: {differences}. Its models cannot "
        f"read it: {how}; --any-text exports it all the same"
    )


def check_captions(selected: LatentDataset, column: str, *, where: str | None, strict: bool) -> Captions:
    """Count the captions of the selected rows. Raises ConfigError if `strict`, and many are empty."""
    texts = captions_of(selected, column)
    counted = of_texts(texts)
    if strict and counted.is_poor:
        remedy = f"{without(filter(_is_blank, texts), where)}, or " if column == "caption" else ""
        raise ConfigError(f"--strict: {counted.warning()}; {remedy}export them without --strict")
    return counted


def captions_of(latents: LatentDataset, column: str) -> list[str | None]:
    """Return what a text was made of: a column of the rows, or a field of their `extra_json`; None where it is none."""
    values = values_of(latents.to_arrow(), column)
    return [value if isinstance(value, str) else None for value in values]


def _filled(latents: LatentDataset, column: str) -> Iterator[str]:
    """Yield the captions that are not empty. Nothing is read before the first is asked for."""
    yield from filter(None, captions_of(latents, column))


def without(captions: Iterable[str | None], where: str | None) -> str:
    """Return the remedy that leaves out the rows with these captions, and those that have none."""
    texts = sorted({caption for caption in captions if caption is not None})
    condition = "caption != None" + (f" and caption not in {texts}" if texts else "")
    if where:
        condition = f"({where}) and {condition}"
    is_plain = "'" in condition and not any(sign in condition for sign in '"$`')
    return f"leave them out with --where {f'{chr(34)}{condition}{chr(34)}' if is_plain else shlex.quote(condition)}"


def _remedy(latents: LatentDataset, selected: LatentDataset, where: str | None) -> str:
    """Return how to go on where a text lacks rows."""
    assert latents.text
    if latents.text.spec["caption_column"] != "caption":
        return "make another text without it, under another --name"
    have, rows = set(latents.to_arrow()["id"].to_pylist()), selected.to_arrow().select(["id", "caption"]).to_pylist()
    return without((row["caption"] for row in rows if row["id"] not in have), where)


def _is_blank(text: str | None) -> bool:
    return not (text or "").strip()
