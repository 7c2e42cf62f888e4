"""Laws: a job cuts long clips of Wan without changing a byte; outputs of the adapter of before are not continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vae
from pipeline.errors import ConfigError
from pipeline.export.families import WAN_21, foreign_scaling
from pipeline.guard.strikes import Strikes
from pipeline.output.spec_file import check, write_spec
from pipeline.records import Chunk, Latent
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job
from pipeline.settings.resolve import resolve
from pipeline.settings.spec import LatentRule, Spec
from pipeline.stages.decode_video import Decoder
from pipeline.stages.encode_chunk import Encoder
from pipeline.storage import Storage
from tests.small import HEALTHY, spec, video
from tests.vae.wan_models import random_wan

pytest.importorskip("diffusers")

CLIP = ClipRule(num_frames=121, height=16, width=32, fps="native")


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("wan")
    random_wan("2.1", num_res_blocks=1, dim_mult=[1, 1, 2, 2]).save_pretrained(folder)
    return str(folder)


def latents(rule: Spec, where: str) -> list[Latent]:
    decoder = Decoder(clip=rule.clip, latent=rule.latent, info=vae.VAEInfo(**rule.vae), deadline=HEALTHY)
    encoder = Encoder(where, rule)
    return [encoder(record) for record in decoder(video(121), Strikes()) if isinstance(record, Chunk)]


def joined(parts: list[Latent]) -> bytes:
    arrays = [np.frombuffer(part.payload, "<u2").reshape(part.shape) for part in parts]
    return np.concatenate(arrays, axis=1).tobytes()


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_a_long_clip_in_chunks_has_the_bytes_of_the_whole(wan: str, posterior: str) -> None:
    """However --context is given: 20 windows of 4 frames are what this encoder's latents depend on."""
    whole = LatentRule(posterior=posterior, chunk_windows=100)  # type: ignore[arg-type]
    (expected,) = latents(spec(CLIP, whole, wan), wan)
    assert expected.shape == (16, 31, 2, 4)
    for context in ("exact", "3"):
        cut = latents(spec(CLIP, replace(whole, chunk_windows=4, context=context), wan), wan)
        assert [part.shape[1] for part in cut] == [4] * 7 + [3]
        assert joined(cut) == expected.payload


def test_a_chunk_carries_no_more_than_its_context(wan: str) -> None:
    rule = spec(CLIP, LatentRule(chunk_windows=4, context="exact"), wan)
    decoder = Decoder(clip=CLIP, latent=rule.latent, info=vae.VAEInfo(**rule.vae), deadline=HEALTHY)
    chunks = [record for record in decoder(video(121), Strikes()) if isinstance(record, Chunk)]
    assert max(len(chunk.frames) for chunk in chunks) == 4 * (20 + 4)
    assert chunks[-1].windows == (4,) * 23
    assert chunks[-1].num_context == 20


def test_an_output_of_the_adapter_is_not_continued(wan: str, tmp_path: Path) -> None:
    """diffusers' code gave other last bits. Its Spec had the schedule `whole`."""
    rule = spec(CLIP, LatentRule(), wan)
    before = rule.vae | {"schedule": "whole", "windowed": False, "weights_sha256": "0" * 64}
    del before["exact_context"]
    old = replace(rule, vae=before)
    write_spec(output := Storage(str(tmp_path)), old)
    with pytest.raises(ConfigError, match=r"cannot be continued: .*other last bits.*\n +vae\.exact_context"):
        check(output, rule)
    with pytest.raises(ConfigError, match="other last bits"):
        Encoder(wan, old)
    assert check(output, old) == old


def test_bad_frames_and_sizes_are_named(wan: str, tmp_path: Path) -> None:
    for clip, message in (
        (replace(CLIP, num_frames=120), r"1 \+ 4k for AutoencoderKLWan, got 120; nearest: 117 or 121"),
        (replace(CLIP, height=20), "positive multiples of 8, got 20x32"),
    ):
        with pytest.raises(ConfigError, match=message):
            resolve(Job(source=("x",), output=str(tmp_path), vae=wan, clip=clip))


def test_a_vae_of_other_channels_than_a_videos_is_refused(tmp_path: Path) -> None:
    random_wan("2.1", in_channels=4, num_res_blocks=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="takes 4 channels, a video has 3"):
        resolve(Job(source=("x",), output="out", vae=str(tmp_path), clip=CLIP))


def test_a_clip_of_any_length_is_accepted(wan: str) -> None:
    """Where the adapter refused clips that do not fit into one chunk."""
    job = Job(source=("x",), output="out", vae=wan, clip=replace(CLIP, num_frames=2001))
    assert resolve(job)[1].schedule == "causal4"


def test_an_export_sees_a_normalisation_that_is_not_the_vaes(wan: str) -> None:
    """A trainer expects that of the checkpoint; `encode --scale --shift` may have replaced it."""
    rule = spec(CLIP, LatentRule(), wan)
    assert WAN_21.has_made(rule.vae)
    assert foreign_scaling(rule.vae, WAN_21) is None
    assert "scale 2" in str(foreign_scaling(rule.vae | {"scale": 2.0}, WAN_21))
