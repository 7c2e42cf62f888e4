"""Law: with --clean wan an embedding is that of diffusers' WanPipeline; without it, and for older texts, as before."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import text as command
from pipeline.errors import ConfigError
from pipeline.export.families import WAN_21
from pipeline.output.layout import text_path
from pipeline.storage import Storage
from pipeline.text import shard_file
from pipeline.text import spec as specs
from pipeline.text.checkpoint import TextCheckpoint, resolve
from pipeline.text.clean import cleaner
from pipeline.text.encoder import TextEncoder
from pipeline.text.job import TextJob
from tests.exports.made import vae_of, write_family
from tests.text.made import write_text
from tests.text.test_text_encoder import array

Encoders = Callable[[str], Path]

CAPTIONS = (
    "red &amp; blue",
    "&amp;lt;b&amp;gt; twice",
    "1 < 2 &amp;lt; 3",  # with a "<", ftfy leaves entities alone
    "\u201ccurly\u201d and it\u2019s",
    "a \U0001f431 cat",
    "two\nlines\r\n and\ttabs",
    "",
    "  ",
    "&nbsp;",
    "sch\u00c3\u00b6n",
    "\ufb01ne \uff21\uff22",
    "nothing to do",
    "\u202dodd\ufeff",
)


def test_captions_are_cleaned_as_diffusers_does() -> None:
    pytest.importorskip("ftfy")
    prompt_clean = pytest.importorskip("diffusers.pipelines.wan.pipeline_wan").prompt_clean
    clean = cleaner("wan")
    single = [f"a{chr(code)} {chr(code)}&#{code};b" for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    for caption in (*CAPTIONS, *single):
        assert clean(caption) == prompt_clean(caption), ascii(caption)
    assert clean("red &amp; blue\n\u201cx\u201d") == 'red & blue "x"'


@pytest.fixture(scope="module")
def umt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small UMT5 with random weights and a tokenizer of pieces, as Wan's: sentencepiece, unigram."""
    spm = pytest.importorskip("sentencepiece")
    transformers = pytest.importorskip("transformers")
    where = tmp_path_factory.mktemp("umt5")
    text = [caption for caption in CAPTIONS if caption.strip()] * 20 + ["red blue nothing lines curly lt gt amp nbsp;"]
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=100, hard_vocab_limit=False, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (where / "spiece.model").write_bytes(model.getvalue())
    transformers.T5Tokenizer.from_pretrained(where, extra_ids=0).save_pretrained(where)
    torch.manual_seed(3)
    config = transformers.UMT5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
    encoder = transformers.UMT5EncoderModel(config)
    for parameter in encoder.parameters():
        parameter.data.normal_(std=0.3)
    encoder.save_pretrained(where)
    return where


def encoder_of(where: Path, **options: Any) -> TextEncoder:
    job = TextJob(output="unused", encoder=str(where), dtype="float32", max_length=48, **options)
    checkpoint = TextCheckpoint.of(job)
    return TextEncoder(checkpoint, resolve(job, checkpoint))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_embeddings_are_those_of_the_pipeline(umt5: Path, batch_size: int) -> None:
    pytest.importorskip("ftfy")
    wan = pytest.importorskip("diffusers").WanPipeline
    from transformers import AutoTokenizer, UMT5EncoderModel

    model = UMT5EncoderModel.from_pretrained(umt5, dtype=torch.float32).eval()
    pipeline = wan(AutoTokenizer.from_pretrained(umt5), model, vae=None, scheduler=None)
    with torch.inference_mode():
        expected, _ = pipeline.encode_prompt(list(CAPTIONS), do_classifier_free_guidance=False, max_sequence_length=48)
    found = encoder_of(umt5, clean="wan", batch_size=batch_size)(CAPTIONS)
    raw = encoder_of(umt5)(CAPTIONS)
    for caption, row in zip(CAPTIONS, expected.numpy(), strict=True):
        length = found[caption].length
        np.testing.assert_allclose(array(found[caption]), row[:length], rtol=1e-4, atol=1e-5)
        assert not row[length:].any()
    assert found["nothing to do"] == raw["nothing to do"]
    assert found["  "] == found["&nbsp;"] == found[""] == raw[""]
    assert len({raw[caption].payload for caption in CAPTIONS}) > len({found[caption].payload for caption in CAPTIONS})
    assert raw["red &amp; blue"].length > found["red &amp; blue"].length


OLD = (
    '{"batch_size":1,"caption_column":"caption","drop_empty":false,"dtype":"float32","encoder":{"layers":3},'
    '"layer":"last","max_length":512,"pad_tokens":false,"text_version":1,"tokenizer_sha256":"0"}'
)
"""The spec of a text that was made before there was --clean."""


def test_an_older_text_is_not_cleaned_and_keeps_its_bytes() -> None:
    old = specs.TextSpec.from_json(OLD)
    assert old.clean == "none"
    assert old.to_json() == OLD


def test_a_way_of_cleaning_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="clean must be none or wan, got 'later'"):
        cleaner("later")


def test_cleaning_is_a_setting_of_the_text(umt5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ftfy")
    write_family(tmp_path, vae_of(WAN_21), captions=CAPTIONS)
    write_text(tmp_path, umt5, name="plain")
    flags = ["--output", str(tmp_path), "--encoder", str(umt5), "--dtype", "float32", "--name"]
    assert command.main([*flags, "plain", "--clean", "wan", "--dry-run"]) == 2
    assert "clean: wan in this run, none there" in capsys.readouterr().err
    assert command.main([*flags, "plain", "--dry-run"]) == 0


def test_a_caption_of_which_nothing_is_left_is_dropped(umt5: Path, tmp_path: Path) -> None:
    pytest.importorskip("ftfy")
    write_family(tmp_path, vae_of(WAN_21), captions=("a", "&nbsp;", "", None))
    write_text(tmp_path, umt5, name="plain", drop_empty=True)
    write_text(tmp_path, umt5, name="clean", drop_empty=True, clean="wan")
    shard = next(path.stem for path in (tmp_path / "data").glob("*.parquet"))
    output = Storage(str(tmp_path))
    for name, kept in (("plain", [True, True, False, False]), ("clean", [True, False, False, False])):
        rows = list(shard_file.read(output.read(text_path(name, shard))))
        assert [row.embedding is not None for row in rows] == kept
    assert b'"clean":"wan"' in output.read(text_path("clean", shard))
    assert b'"clean"' not in output.read(text_path("plain", shard))


def test_without_ftfy_the_command_says_what_to_install(
    umt5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    cleaner.cache_clear()
    write_family(tmp_path, vae_of(WAN_21))
    assert command.main(["--output", str(tmp_path), "--encoder", str(umt5), "--clean", "wan"]) == 2
    assert "--clean wan needs ftfy: pip install ftfy" in capsys.readouterr().err
    assert not (tmp_path / "text").exists()
