"""Laws of the encoder: embeddings are those of transformers; padding, batches and neighbours change no byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentmill.format import to_float32
from pipeline.errors import ConfigError, EncoderError
from pipeline.text.checkpoint import TextCheckpoint, resolve
from pipeline.text.encoder import TextEncoder
from pipeline.text.job import TextJob
from pipeline.text.records import Embedding, NonfiniteTextError
from pipeline.text.spec import TextSpec
from tests.text.checkpoints import MODELS, tokenizer

Encoders = Callable[[str], Path]

TEXTS = [
    *("the cat runs", "", "a dog jumps over the red house", "a dog"),
    *("nothing known", "שלום עולם", "مرحبا a cat", "the tree"),
]


def made(where: Path, **options: object) -> tuple[TextEncoder, TextSpec]:
    job = TextJob(output="out", encoder=str(where), **({"dtype": "float32"} | options))  # type: ignore[arg-type]
    checkpoint = TextCheckpoint.of(job)
    spec = resolve(job, checkpoint)
    return TextEncoder(checkpoint, spec), spec


def by_hand(where: Path, texts: list[str], layer: int | None = None) -> list[np.ndarray]:
    """What transformers makes of a padded batch, without the padding."""
    from transformers import AutoModel, AutoTokenizer, CLIPTextModel, T5EncoderModel, UMT5EncoderModel

    kinds = {"t5": T5EncoderModel, "whole_t5": T5EncoderModel, "umt5": UMT5EncoderModel}
    kinds |= {"clip": CLIPTextModel, "whole_clip": CLIPTextModel}
    torch.set_num_threads(1)
    model = kinds.get(where.name, AutoModel).from_pretrained(where, dtype=torch.float32).eval()
    loaded = AutoTokenizer.from_pretrained(where)
    batch = loaded(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        found = model(**inputs, output_hidden_states=True)
    values = found.last_hidden_state if layer is None else found.hidden_states[layer]
    lengths = inputs["attention_mask"].sum(1).tolist()
    return [value[:length].numpy() for value, length in zip(values, lengths, strict=True)]


def array(embedding: Embedding) -> np.ndarray:
    return to_float32(embedding.payload, embedding.dtype).reshape(embedding.shape)


@pytest.mark.parametrize("kind", MODELS)
def test_embeddings_are_those_of_transformers(encoders: Encoders, kind: str) -> None:
    texts = [text for text in TEXTS if text or kind != "qwen"]  # its tokenizer makes no token of the empty text
    encoder, _ = made(encoders(kind), max_length=16)
    found = encoder(texts)
    for text, expected in zip(texts, by_hand(encoders(kind), texts), strict=True):
        assert found[text].shape == expected.shape
        assert found[text].length == len(expected)
        np.testing.assert_allclose(array(found[text]), expected, rtol=1e-5, atol=1e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("layer", [0, 1, -2, -1])
def test_a_layer_is_a_place_in_hidden_states(encoders: Encoders, layer: int) -> None:
    encoder, _ = made(encoders("qwen"), max_length=16, layer=str(layer))
    (expected,) = by_hand(encoders("qwen"), TEXTS[:1], layer)
    np.testing.assert_allclose(array(encoder(TEXTS[:1])[TEXTS[0]]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "clip", "gemma"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_embedding_depends_on_its_caption_alone(encoders: Encoders, kind: str, dtype: str) -> None:
    encoder, _ = made(encoders(kind), max_length=16, dtype=dtype)
    together = encoder(TEXTS)
    again, _ = made(encoders(kind), max_length=16, dtype=dtype)
    for text in reversed(TEXTS):
        assert again([text])[text] == together[text]


def test_a_batch_holds_captions_of_one_length_and_its_bytes_follow_from_the_shard(encoders: Encoders) -> None:
    encoder, _ = made(encoders("t5"), batch_size=3)
    seen: list[list[list[int]]] = []
    encoder._model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"].tolist()), with_kwargs=True
    )
    texts = ["a cat", "the dog", "a dog", "the cat", "a red house", "a"]
    made_of = [encoder(order) for order in (texts, texts[::-1], texts * 2)]
    assert made_of[0] == made_of[1] == made_of[2]
    assert [(len(batch), len(batch[0])) for batch in seen[:4]] == [(1, 2), (3, 3), (1, 3), (1, 4)]
    assert seen[:4] == seen[4:8] == seen[8:]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_padding_tokens_are_read_as_text_where_the_model_learned_so(encoders: Encoders, batch_size: int) -> None:
    from transformers import AutoTokenizer, T5EncoderModel

    encoder, _ = made(encoders("t5"), max_length=9, pad_tokens=True, batch_size=batch_size)
    found = encoder(TEXTS)
    model = T5EncoderModel.from_pretrained(encoders("t5"), dtype=torch.float32).eval()
    loaded = AutoTokenizer.from_pretrained(encoders("t5"))
    for text in TEXTS:
        ids = loaded(text, padding="max_length", truncation=True, max_length=9, return_tensors="pt").input_ids
        with torch.inference_mode():
            expected = model(ids)[0][0].numpy()  # as diffusers calls it for CogVideoX: without a mask
        assert found[text].shape == (9, 32)
        assert found[text].length == len(loaded(text).input_ids)
        np.testing.assert_allclose(array(found[text]), expected, rtol=1e-5, atol=1e-6 * max(1, np.abs(expected).max()))


def test_padding_needs_a_padding_token(encoders: Encoders, tmp_path: Path) -> None:
    shutil.copytree(encoders("t5"), tmp_path / "t5")
    settings = tmp_path / "t5/tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"pad_token": None}))
    with pytest.raises(ConfigError, match=r"--pad-tokens: the tokenizer of .* has no padding token"):
        made(tmp_path / "t5", pad_tokens=True)


def test_a_long_caption_is_cut_as_transformers_cuts_it(encoders: Encoders) -> None:
    encoder, _ = made(encoders("clip"), max_length=16)
    long = "the cat " * 5000
    found = encoder([long, "a cat"])
    assert (found[long].truncated, found["a cat"].truncated) == (True, False)
    assert found[long].length == 16
    np.testing.assert_allclose(array(found[long]), by_hand(encoders("clip"), [long])[0], rtol=1e-5, atol=1e-6)


def test_a_text_without_a_token_gets_one(encoders: Encoders) -> None:
    encoder, _ = made(encoders("qwen"))
    found = encoder(["", "<pad>"])
    assert found[""].length == 1
    assert found[""].payload == found["<pad>"].payload


def test_the_spec_names_the_checkpoint_and_not_its_place(encoders: Encoders, tmp_path: Path) -> None:
    where = encoders("t5")
    for path in where.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert made(tmp_path)[1] == made(where)[1]
    tokenizer(tmp_path, begin=True)
    assert made(tmp_path)[1].tokenizer_sha256 != made(where)[1].tokenizer_sha256
    _, spec = made(where)
    with pytest.raises(ConfigError, match="tokenizer differ from those of the spec"):
        TextEncoder(TextCheckpoint.of(TextJob(output="out", encoder=str(tmp_path))), spec)


def test_a_checkpoint_without_all_weights_is_refused(encoders: Encoders, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    where = encoders("t5")
    for path in where.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if "layer_norm" in name)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"1 weights are missing.*{name}"):
        made(tmp_path)


def test_pickled_weights_are_read_only_if_asked(encoders: Encoders, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    where = encoders("t5")
    for path in where.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(where / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickle.*--allow-pickle"):
        made(tmp_path)
    assert made(tmp_path, allow_pickle=True)[0](TEXTS) == made(where)[0](TEXTS)


def test_an_embedding_that_is_not_finite_is_an_error(encoders: Encoders) -> None:
    encoder, _ = made(encoders("t5"))
    next(encoder._model.parameters()).data.fill_(float("nan"))
    with pytest.raises(NonfiniteTextError, match="'a cat', computed in float32"):
        encoder(["a cat"])


def test_the_tokenizer_of_another_encoder_is_noticed(encoders: Encoders) -> None:
    encoder, _ = made(encoders("t5"), tokenizer=str(encoders("qwen")))
    with pytest.raises(EncoderError, match=r"token \d+ of 'zzz' is none of the 33 that the encoder knows"):
        encoder(["zzz"])


CONFIG_ERRORS: dict[str, tuple[dict[str, object], str]] = {
    "no folder": ({"where": "/nowhere/at/all"}, "must be a folder with a config.json"),
    "layer": ({"layer": "7"}, r"--layer must be `last` or lie in \[-4, 3\], got 7"),
    "layer as a word": ({"layer": "first"}, "--layer must be `last` or a whole number"),
    "length of CLIP": ({"max_length": 17}, "--max-length must be at most 16"),
    "length of nothing": ({"max_length": 2}, "--max-length must be above 2"),
    "name": ({"name": "../x"}, "--name must be"),
    "batch": ({"batch_size": 0}, "--batch-size"),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
def test_a_wrong_setting_is_one_clear_line(encoders: Encoders, case: str) -> None:
    options, message = CONFIG_ERRORS[case]
    with pytest.raises(ConfigError, match=message) as caught:
        made(**({"where": encoders("clip")} | options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused_and_told_where_one_is(encoders: Encoders, tmp_path: Path) -> None:
    where = tmp_path / "text_encoder"
    where.mkdir()
    for name in ("config.json", "model.safetensors"):
        (where / name).write_bytes((encoders("t5") / name).read_bytes())
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        made(where)
    tokenizer(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=f"--tokenizer {tmp_path}/tokenizer"):
        made(where)
    found = made(where, tokenizer=str(tmp_path / "tokenizer"))[0](TEXTS)
    assert found == made(encoders("t5"))[0](TEXTS)


def test_code_in_a_checkpoint_never_runs(encoders: Encoders, tmp_path: Path) -> None:
    import json

    where = encoders("t5")
    for path in where.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="cannot be read"):
        made(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_default_length_is_what_encoder_and_tokenizer_take(encoders: Encoders) -> None:
    assert made(encoders("clip"))[1].max_length == 16
    assert made(encoders("t5"))[1].max_length == 512


def test_an_older_spec_is_the_same_text_again(encoders: Encoders) -> None:
    _, spec = made(encoders("t5"), layer="-2")
    assert spec.layer == 2
    assert TextSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ConfigError, match="text_version must be 1, got 9"):
        TextSpec.from_json(replace(spec, text_version=9).to_json())
