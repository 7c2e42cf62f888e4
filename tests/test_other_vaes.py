"""Laws: VAEs of diffusers encode through the job; an output of before a new field of the Spec goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import latentmill
import vae
from jobs.verify import main as verify
from pipeline.output.spec_file import check, load_spec, write_spec
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job
from pipeline.settings.resolve import resolve
from pipeline.settings.spec import LatentRule, Spec
from pipeline.storage import Storage
from tests.outputs import make_output
from tests.small import CLIP, spec
from tests.vae.test_diffusers_vae import TINY
from tests.vae.wan_models import random_wan
from tests.videos import make_video

diffusers = pytest.importorskip("diffusers")

LATENT = LatentRule(dtype="float32", store_dtype="float32")


def saved(folder: Path, name: str) -> str:
    torch.manual_seed(0)
    model = random_wan("2.2", num_res_blocks=1) if name == "Wan 2.2" else getattr(diffusers, name)(**TINY[name])
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "num_frames", "size", "shape"),
    [
        ("AutoencoderKLLTX2Video", 17, 64, (8, 3, 2, 2)),
        ("AutoencoderKLHunyuanVideo15", 9, 32, (4, 3, 2, 2)),
        ("AutoencoderKLHunyuanVideo", 33, 16, (4, 9, 2, 2)),
        ("Wan 2.2", 9, 32, (48, 3, 2, 2)),
    ],
)
def test_a_job_encodes_with_it(tmp_path: Path, name: str, num_frames: int, size: int, shape: tuple[int, ...]) -> None:
    where = saved(tmp_path / "vae", name)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "one.mp4").write_bytes(make_video(num_frames=48, width=96, height=64))
    rule = ClipRule(num_frames=num_frames, height=size, width=size, fps="native")
    make_output(tmp_path / "videos", tmp_path / "out", rule, LATENT, vae=where)
    latents = latentmill.open(str(tmp_path / "out"))
    assert latents.shapes == {shape: 1}
    assert torch.isfinite(latents[0]["latent"]).all()
    assert verify(["--output", str(tmp_path / "out"), "--reencode", "1", "--vae", where]) == 0


def test_an_output_from_before_a_field_of_the_vae_goes_on_without_it(tmp_path: Path) -> None:
    """HunyuanVideo was always encoded in tiles of time; the Spec says so since this field."""
    where = saved(tmp_path / "vae", "AutoencoderKLHunyuanVideo")
    rule = spec(ClipRule(num_frames=17, height=16, width=16), LATENT, where)
    assert rule.vae["time_tiling"] == [16, 12]
    before: dict[str, Any] = {key: value for key, value in rule.vae.items() if key != "time_tiling"}
    old = replace(rule, vae=before)
    write_spec(output := Storage(str(tmp_path / "out")), old)
    assert check(output, rule).to_json() == old.to_json() == load_spec(output).to_json()
    write_spec(other := Storage(str(tmp_path / "new")), rule)
    assert check(other, rule).vae["time_tiling"] == [16, 12]


def test_float32_sums_exactly_and_an_output_of_before_goes_on_with_its_own_sums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both kinds of output are encoded again to equal bytes, and they differ; bfloat16 knows one kind of sum only."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "one.mp4").write_bytes(make_video(num_frames=48, width=96, height=64))
    job = Job(source=(str(tmp_path / "videos"),), output=str(tmp_path / "new"), vae="tiny", latent=LATENT)
    now, _ = resolve(job)
    assert now.vae["exact_statistics"]
    assert "exact_statistics" not in resolve(replace(job, latent=LatentRule()))[0].vae
    latents = {}
    for name, exact in (("new", True), ("old", False)):
        output = make_output(
            tmp_path / "videos",
            tmp_path / name,
            CLIP,
            LATENT,
            normalisation={} if exact else {"exact_statistics": None},
        )
        assert check(output, now_of(output, now)).vae.get("exact_statistics", False) == exact
        assert verify(["--output", output.uri, "--reencode", "9"]) == 0
        assert "relative difference" not in capsys.readouterr().out
        latents[name] = latentmill.open(output.uri)[0]["latent"]
    assert not torch.equal(latents["new"], latents["old"])
    torch.testing.assert_close(latents["new"], latents["old"], rtol=1e-3, atol=1e-3)


def now_of(output: Storage, now: Spec) -> Spec:
    """The Spec that a run of today makes of the settings of an output."""
    return replace(load_spec(output), vae=now.vae)


def test_the_info_of_a_spec_is_the_vaes(tmp_path: Path) -> None:
    where = saved(tmp_path / "vae", "AutoencoderKLHunyuanVideo")
    info = vae.load_vae(where).info
    assert vae.VAEInfo(**info.to_json()).to_json() == info.to_json()
