"""Law: `latentmill vae` names what a checkpoint is, as text and as JSON; a bad path is one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jobs.vae import main
from tests.vae.test_diffusers_vae import TINY
from tests.vae.wan_models import original_names, random_wan

diffusers = pytest.importorskip("diffusers")

SMALL = {"num_res_blocks": 1, "dim_mult": [1, 1, 2, 2]}


def test_tiny_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["family"] == "tiny"
    assert lines["frames"] == "1 + 4k: 1, 5, 9, 13, ..."
    assert lines["latent"].endswith("81x480x832 becomes 16x21x60x104")


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize(
    ("variant", "family", "size", "channels"), [("2.1", "Wan 2.1", 8, 16), ("2.2", "Wan 2.2", 16, 48)]
)
def test_wan(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    variant: str,
    family: str,
    size: int,
    channels: int,
    original: bool,
) -> None:
    model = random_wan(variant, **SMALL)
    if original:
        torch.save(original_names(model), where := tmp_path / "Wan_VAE.pth")
    else:
        model.save_pretrained(where := tmp_path)
    assert main([str(where), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["family"], facts["encoder"], facts["frames"]) == (family, "latentmill", "1 + 4k")
    assert (facts["size_multiple"], facts["latent_channels"]) == (size, channels)
    assert facts["example"] == {"clip": [81, 480, 832], "latent": [channels, 21, 480 // size, 832 // size]}
    assert facts["exact_context"] == 20
    assert "FastVideo" in facts["trainers"]


@pytest.mark.parametrize(
    ("name", "family", "trainer", "says"),
    [
        ("AutoencoderKLHunyuanVideo", "HunyuanVideo", "musubi-tuner", "tiles of 16 + 1 frames, one every 12"),
        ("AutoencoderKLLTX2Video", "LTX-2", "LTX-2 trainer", "1 + 8k: 1, 9, 17, 25"),
        ("AutoencoderKLMochi", "Mochi", "Mochi's own", "79x480x832 becomes 4x14x60x104"),
    ],
)
def test_vaes_of_diffusers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, family: str, trainer: str, says: str
) -> None:
    torch.manual_seed(0)
    getattr(diffusers, name)(**TINY[name]).save_pretrained(tmp_path)
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"family      {family}\n" in text
    assert trainer in text
    assert says in text
    assert "encoded by diffusers' code" in text


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_bad_path_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("latentmill vae: ")
    assert error.count("\n") == 1
    assert "x.pth" in error
