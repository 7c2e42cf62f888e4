"""From videos to NeMo Automodel's own dataset, and three steps of a toy diffusion transformer on it.

    pip install '.[diffusers,text]' nemo-automodel       # in a checkout of latentmill
    python examples/train_from_export.py --work toy

It makes the videos of the demo, encodes them, encodes their captions, exports both, and trains on what Automodel's
loader gives. Without --vae and --encoder it makes a Wan VAE and a T5 with random weights: a few seconds on a CPU, and
good for nothing but to see the path. With the VAE and the text encoder of Wan 2.1 it is the path to train Wan.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

STEPS = 3


class ToyDiT(nn.Module):
    """Predicts the noise in a latent [B, C, T, H, W] at time t in 0..1, with a text [B, S, E] to look at."""

    def __init__(self, channels: int, text_width: int, width: int = 64) -> None:
        super().__init__()
        self.patch = nn.Conv3d(channels, width, (1, 2, 2), (1, 2, 2))
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.text = nn.Linear(text_width, width)
        self.block = nn.TransformerDecoderLayer(width, nhead=4, dim_feedforward=128, dropout=0.0, batch_first=True)
        self.last = nn.ConvTranspose3d(width, channels, (1, 2, 2), (1, 2, 2))

    def forward(self, noisy: Tensor, t: Tensor, text: Tensor) -> Tensor:
        patches = self.patch(noisy)
        tokens = patches.flatten(2).transpose(1, 2) + self.time(t.view(-1, 1))[:, None]
        seen = self.block(tokens, self.text(text))
        out: Tensor = self.last(seen.transpose(1, 2).unflatten(2, patches.shape[2:]))
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("toy"), help="a folder for everything that is made")
    parser.add_argument("--vae", help="the VAE of Wan 2.1 in diffusers' form")
    parser.add_argument("--encoder", help="the text encoder of Wan 2.1 in transformers' form")
    args = parser.parse_args()

    export = make_export(args.work, args.vae or toy_vae(args.work / "vae"), args.encoder or toy_t5(args.work / "t5"))

    from nemo_automodel.components.datasets.diffusion.collate_fns import build_video_multiresolution_dataloader

    loader, _ = build_video_multiresolution_dataloader(
        cache_dir=str(export), batch_size=2, num_workers=0, pin_memory=False
    )
    first = next(iter(loader))
    torch.manual_seed(0)
    model = ToyDiT(first["video_latents"].shape[1], first["text_embeddings"].shape[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    print(f"clips {len(loader.dataset)}, loss before {loss_over(model, loader):.4f}", flush=True)
    for step, batch in zip(range(STEPS), loader, strict=False):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item():.4f} latents {tuple(batch['video_latents'].shape)}", flush=True)
    print(f"loss after {loss_over(model, loader):.4f}", flush=True)


def make_export(work: Path, vae: str, encoder: str) -> Path:
    """Run the four commands, and return the folder that the trainer reads."""
    from jobs.demo.videos import write_sources  # any videos with captions will do

    if not (work / "videos").exists():
        write_sources(work / "videos")
    output, export = str(work / "latents"), work / "automodel"
    size = ["--num-frames", "9", "--height", "64", "--width", "96", "--clips", "all"]
    run("encode", "--source", f"{work}/videos/tars/*.tar", "--output", output, "--vae", vae, *size, "--encoders", "1")
    run("text", "--output", output, "--encoder", encoder, "--name", "t5", "--max-length", "32", "--encoders", "1")
    flags = ["--text", "t5", "--to", "automodel", "--any-text", "--workers", "1"]  # any text: the encoder is a toy
    run("export", "--output", output, "--into", str(export), *flags)
    return export


def run(*command: str) -> None:
    """Run a command of latentmill; running it again resumes it."""
    subprocess.run([sys.executable, "-m", "jobs.cli", *command], check=True)


def loss_of(model: ToyDiT, batch: dict[str, Tensor]) -> Tensor:
    """The loss of one batch: rectified flow between the latent and noise, with the noise as the target."""
    latent, text = batch["video_latents"].float(), batch["text_embeddings"].float()
    noise, t = torch.randn_like(latent), torch.rand(len(latent))
    mix = t.view(-1, 1, 1, 1, 1)
    return nn.functional.mse_loss(model((1 - mix) * latent + mix * noise, t, text), noise)


@torch.no_grad()
def loss_over(model: ToyDiT, loader: object) -> float:
    """The mean loss over all batches, with the same noise at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        losses = [loss_of(model, batch).item() for _ in range(4) for batch in loader]  # type: ignore[attr-defined]
    return sum(losses) / len(losses)


def toy_vae(where: Path) -> str:
    """Make a Wan VAE with random weights."""
    from diffusers import AutoencoderKLWan

    if not where.exists():
        torch.manual_seed(0)
        AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(where)
    return str(where)


def toy_t5(where: Path) -> str:
    """Make a T5 encoder with random weights, and a tokenizer that has one token for each character."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    if not where.exists():
        torch.manual_seed(0)
        ids = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *map(chr, range(32, 127))])}
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(where)
        config = T5Config(vocab_size=len(ids), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        T5EncoderModel(config).save_pretrained(where)
    return str(where)


if __name__ == "__main__":
    main()
