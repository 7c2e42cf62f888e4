"""Law: the commands of the README run as they stand there, on S3, with checkpoints that are not `tiny`.

Only the size and the length of the clips are made smaller. The checkpoints have the shapes that the README's export
checks, and random weights.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.s3 import S3
from tests.sources import make_tar
from tests.text.checkpoints import VOCABULARY, tokenizer
from tests.videos import make_video

pytest_plugins = ["tests.s3"]

README = Path(__file__).parents[1] / "README.md"
SMALLER = {"49": "9", "480": "64", "720": "96"}
"""Values of options: clips of 9 frames of 64x96."""


def commands() -> list[list[str]]:
    """The commands of the section "Run it on your videos", each as its words."""
    section = README.read_text().partition("## Run it on your videos")[2]
    block = section.split("```")[1].replace("\\\n", " ")
    found = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("latentmill ")]
    return [[SMALLER.get(word, word) for word in words] for words in found]


def checkpoints(folder: Path) -> None:
    """Write the folder `checkpoints/` of the README, with random weights."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    levels = {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 32, "layers_per_block": 1}
    blocks = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
    vae = diffusers.AutoencoderKLCogVideoX(**levels, **blocks, scaling_factor=0.7, temporal_compression_ratio=4)
    vae.save_pretrained(folder / "cogvideox-5b" / "vae")
    sizes = {"d_model": 4096, "num_layers": 24}  # as CogVideoX's, which the export asks for
    config = transformers.T5Config(**sizes, vocab_size=VOCABULARY, d_kv=8, d_ff=8, num_heads=1)
    transformers.T5EncoderModel(config).save_pretrained(folder / "cogvideox-5b" / "text_encoder")
    tokenizer(folder / "cogvideox-5b" / "tokenizer")


@pytest.mark.slow
def test_every_command_of_the_readme_runs(s3: S3, tmp_path: Path) -> None:
    for bucket in ("videos", "latents"):
        s3.client.create_bucket(Bucket=bucket)
    members = [
        (f"{name}.{kind}", data)
        for name in "ab"
        for kind, data in (("mp4", make_video(num_frames=60, width=96, height=64)), ("txt", f"caption {name}".encode()))
    ]
    s3.client.put_object(Bucket="videos", Key="shards/0.tar", Body=make_tar(members))
    checkpoints(tmp_path / "checkpoints")
    printed = {}
    for words in commands():
        command = [sys.executable, "-m", "jobs.cli", *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        printed[words[1]] = done.stdout
    assert {"encode", "status", "verify", "stats", "report", "text", "export"} <= printed.keys()
    assert len(re.findall("^encoded again: .*: equal bytes$", printed["verify"], re.MULTILINE)) == 4
    assert "Latents are not decoded" not in (tmp_path / "report.html").read_text()
