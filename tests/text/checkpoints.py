"""Tiny random text encoders and tokenizers, made here and saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

WORDS = (
    *("a", "the", "cat", "dog", "runs", "jumps", "over", "under", "red", "blue", "house", "tree", "by", "hand"),
    *("caption", "of", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "שלום", "עולם", "مرحبا"),
)
SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")
VOCABULARY = len(WORDS) + len(SPECIAL)

SMALL = {"num_attention_heads": 4, "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64}


def tokenizer(where: Path, *, begin: bool = False, end: bool = True, model_max_length: int = 512) -> Path:
    """Save a tokenizer of whole words, which adds a token at the begin or the end of each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    template = " ".join(["<s>"] * begin + ["$A"] + ["</s>"] * end)
    if begin or end:
        made.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
        )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=model_max_length, padding_side="right", **names
    ).save_pretrained(where)
    return where


def byte_tokenizer(where: Path) -> Path:
    """Save a tokenizer as Qwen has it: a token a byte, and none at the begin or the end."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    ids = {token: i for i, token in enumerate(["<pad>", "<eos>", *sorted(ByteLevel.alphabet())])}
    made = Qwen2Tokenizer(vocab=ids, merges=[], pad_token="<pad>", eos_token="<eos>", unk_token="<eos>")
    made.save_pretrained(where)
    return where


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4))


def _whole_t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
    )


def _umt5() -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4))


def _clip_text() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=VOCABULARY, max_position_embeddings=16, pad_token_id=0, eos_token_id=1, bos_token_id=3, **SMALL
    )


def _clip() -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel(_clip_text())


def _whole_clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    vision = SMALL | {"num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    return CLIPModel(CLIPConfig(text_config=_clip_text().to_dict(), vision_config=vision))


def _gemma() -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(Gemma2Config(vocab_size=VOCABULARY, num_key_value_heads=2, head_dim=8, **SMALL))


def _qwen() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(vocab_size=258, num_key_value_heads=2, **SMALL))


_CLIP_TOKENIZER = partial(tokenizer, begin=True, model_max_length=16)

MODELS: dict[str, tuple[Callable[[], Any], Callable[[Path], Path]]] = {
    "t5": (_t5, tokenizer),
    "whole_t5": (_whole_t5, tokenizer),
    "umt5": (_umt5, tokenizer),
    "clip": (_clip, _CLIP_TOKENIZER),
    "whole_clip": (_whole_clip, _CLIP_TOKENIZER),
    "gemma": (_gemma, partial(tokenizer, begin=True, end=False)),
    "qwen": (_qwen, byte_tokenizer),
}
"""How each model, and its tokenizer, is made."""


def checkpoint(where: Path, kind: str = "t5") -> Path:
    """Save a model of this kind with its tokenizer in a folder, and return the folder."""
    import torch

    make, make_tokenizer = MODELS[kind]
    torch.manual_seed(7)
    model = make()
    for parameter in model.parameters():  # T5 begins with numbers that are too small to tell layers apart
        parameter.data.normal_(std=0.3)
    model.save_pretrained(where)
    return make_tokenizer(where)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a checkpoint of each kind, made when it is first asked for."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoders")

    def of(kind: str) -> Path:
        return folder / kind if (folder / kind).exists() else checkpoint(folder / kind, kind)

    return of
