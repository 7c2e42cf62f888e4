"""TextEncoder: captions in, embeddings out. It does not use Ray.

A forward pass holds captions of one number of tokens, so none is padded: padding, even if it is masked, changes which
kernels run and how they round. (`pad_tokens` gives all captions the same number, and the encoder reads them all.) With
batches of one, the default, the bytes of an embedding are a function of the caption and the TextSpec alone, in every
shard and for every order of the work. Larger batches are formed of the distinct captions of one shard, sorted by
(number of tokens, text): their bytes are a function of the shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ConfigError, EncoderError
from pipeline.stages.encode_chunk import to_bytes
from pipeline.text.checkpoint import OFFLINE, TextCheckpoint, complaint
from pipeline.text.clean import cleaner
from pipeline.text.records import Embedding, NonfiniteTextError
from pipeline.text.spec import TextSpec
from vae.engines import make_deterministic

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TextEncoder:
    """Load an encoder and its tokenizer, then turn captions into embeddings."""

    def __init__(self, where: TextCheckpoint, spec: TextSpec, *, device: str = "cpu", threads: int = 1) -> None:
        """Load the encoder.

        Args:
            where: its weights and its tokenizer must be the ones that the spec names.
            device: "cpu" or "cuda".
            threads: torch threads on a CPU. The last bits of an embedding may depend on it.

        Raises:
            ConfigError: the checkpoint is another one, or lacks weights; or the library that cleans is missing.
        """
        make_deterministic(threads, float32=spec.dtype == "float32")
        found = where.digests()
        wanted = {name: spec.encoder[f"{name}_sha256"] for name in ("config", "weights")}
        wanted["tokenizer"] = spec.tokenizer_sha256
        if others := [name for name in wanted if found[name] != wanted[name]]:
            raise ConfigError(f"{where.encoder}: {' and '.join(others)} differ from those of the spec on this machine")
        self._spec = spec
        self._clean = cleaner(spec.clean)
        self._device = torch.device(device)
        self._tokenizer = where.load_tokenizer()
        self._model = load_model(where, getattr(torch, spec.dtype)).to(self._device)
        self._vocabulary = self._model.get_input_embeddings().num_embeddings

    def __call__(self, captions: Iterable[str]) -> dict[str, Embedding]:
        """Return the embedding of each distinct caption. Captions that are equal once they are clean share one.

        Raises:
            NonfiniteTextError: NaN or infinity in an embedding.
            EncoderError: a token that the encoder does not know.
        """
        clean = {caption: self._clean(caption) for caption in captions}
        tokens = self.tokens(sorted(set(clean.values())))
        read = {text: self._filled(ids) for text, (ids, _) in tokens.items()}
        made: dict[str, Embedding] = {}
        for _, group in groupby(sorted(read, key=lambda text: len(read[text])), key=lambda text: len(read[text])):
            for batch in _batches(list(group), self._spec.batch_size):
                values = self._forward([read[text] for text in batch])
                for text, value in zip(batch, values, strict=True):
                    ids, is_truncated = tokens[text]
                    if not torch.isfinite(value).all():
                        raise NonfiniteTextError(
                            f"NaN or infinity in the embedding of {text[:60]!r}, computed in {self._spec.dtype}"
                        )
                    made[text] = Embedding(
                        payload=to_bytes(value, self._spec.dtype),
                        shape=(value.shape[0], value.shape[1]),
                        dtype=self._spec.dtype,
                        length=len(ids),
                        truncated=is_truncated,
                    )
        return {caption: made[text] for caption, text in clean.items()}

    def tokens(self, texts: list[str]) -> dict[str, tuple[list[int], bool]]:
        """Return the tokens of each text, special ones included, and whether they were cut to `max_length`.

        A text of which the tokenizer makes no token at all gets one padding token (the end of text where there is no
        padding token), because no encoder takes an empty sequence.
        """
        if not texts:
            return {}
        found: dict[str, tuple[list[int], bool]] = {}
        for text, ids in zip(texts, self._tokenizer(texts, verbose=False)["input_ids"], strict=True):
            is_long = len(ids) > self._spec.max_length
            if is_long:
                ids = self._tokenizer(text, truncation=True, max_length=self._spec.max_length)["input_ids"]
            if ids and max(ids) >= self._vocabulary:
                raise EncoderError(
                    f"token {max(ids)} of {text[:60]!r} is none of the {self._vocabulary} that the encoder knows: is "
                    "this its tokenizer?"
                )
            found[text] = (ids or [self._filler()], is_long)
        return found

    def _filled(self, ids: list[int]) -> list[int]:
        """Return the tokens that the encoder reads: with `pad_tokens`, `max_length` of them."""
        if not self._spec.pad_tokens:
            return ids
        filled = self._tokenizer.pad({"input_ids": ids}, padding="max_length", max_length=self._spec.max_length)
        return list(filled["input_ids"])

    def _filler(self) -> int:
        ids = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        return next(int(one) for one in ids if one is not None)

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> torch.Tensor:
        """Return [B, S, E] on the CPU for B captions of S tokens."""
        input_ids = torch.tensor(ids, device=self._device)
        options: dict[str, Any] = {} if self._spec.layer == "last" else {"output_hidden_states": True}
        made = self._model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **options)
        values: torch.Tensor = made.last_hidden_state if not options else made.hidden_states[self._spec.layer]
        return values.to(getattr(torch, self._spec.dtype)).cpu()


def load_model(where: TextCheckpoint, dtype: torch.dtype) -> PreTrainedModel:
    """Load the part of a checkpoint that reads text: the encoder of an encoder-decoder, the text part of CLIP.

    Raises:
        ConfigError: transformers cannot load it, or the checkpoint lacks some of its weights.
    """
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

    config = where.config()
    kind = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    is_safe = where.weights()[0].suffix == ".safetensors"
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "use_safetensors": is_safe}
    with complaint(f"--encoder {where.encoder}"):
        model, info = kind.from_pretrained(where.encoder, config=config, **OFFLINE, **options)
    if missing := sorted(info["missing_keys"]) or sorted(map(str, info["mismatched_keys"])):
        raise ConfigError(
            f"--encoder {where.encoder} does not fit {type(model).__name__}: {len(missing)} weights are missing or of "
            f"another shape, such as {', '.join(missing[:5])}"
        )
    if model.config.is_encoder_decoder and kind is AutoModel:
        model = model.get_encoder()
    model = getattr(model, "text_model", model)
    model.config.get_text_config().use_cache = False  # keys and values of a decoder would be kept for nothing
    return model.eval()


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
