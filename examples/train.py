"""Train a toy denoiser on an output of `latentmill encode`: plain PyTorch, one process or several.

    make demo
    python examples/train.py --output demo/latents/tars --epochs 20
    torchrun --nproc-per-node 2 examples/train.py --output demo/latents/tars --epochs 20

Kill it at any moment and run it again, with another number of processes if you like: it goes on where its checkpoint
says, and every latent still comes once an epoch.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import latentmill


class Denoiser(nn.Module):
    """Predicts the noise in a latent [B, C, T, H, W] that was mixed with noise at time t in 0..1."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels + 1, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.last = nn.Conv3d(width, channels, 3, padding=1)

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        times = t.view(-1, 1, 1, 1, 1).expand(-1, 1, *noisy.shape[2:])
        hidden = nn.functional.silu(self.first(torch.cat([noisy, times], dim=1)))
        hidden = nn.functional.silu(self.second(hidden))
        out: Tensor = self.last(hidden)
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="demo/latents/tars", help="what `latentmill encode` wrote")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=2, help="of each process")
    parser.add_argument("--workers", type=int, default=0, help="processes that read; 0: threads")
    args = parser.parse_args()

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)

    latents = latentmill.open(args.output)
    channels = next(iter(latents.shapes))[0]
    # "wrap": every process has as many batches as the others, and no latent is left out.
    loader = latents.loader(
        batch_size=args.batch_size, seed=0, rank=rank, world_size=world, workers=args.workers, drop_last="wrap"
    )
    model = Denoiser(channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        if rank == 0:
            print(f"resumed at epoch {saved['loader']['epoch']}, batch {saved['loader']['batches']}", flush=True)
    if world > 1:
        dist.barrier()  # all have read the checkpoint before rank 0 writes the next one

    while (epoch := loader.epoch) < args.epochs:
        for batch in loader:
            loss = step(model, batch["latent"].float())
            optimizer.zero_grad()
            loss.backward()
            if world > 1:  # what DistributedDataParallel does, in the open
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
                    parameter.grad /= world
            optimizer.step()
            if rank == 0:
                print(f"epoch {epoch} loss {loss.item():.4f} {' '.join(batch['key'])}", flush=True)
                save(args.checkpoint, model, optimizer, loader)
    if world > 1:
        dist.destroy_process_group()


def step(model: nn.Module, latent: Tensor) -> Tensor:
    """The loss of one batch: rectified flow between the latent and noise, with the noise as the target."""
    noise, t = torch.randn_like(latent), torch.rand(len(latent))
    mix = t.view(-1, 1, 1, 1, 1)
    return nn.functional.mse_loss(model((1 - mix) * latent + mix * noise, t), noise)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, loader: latentmill.Loader) -> None:
    """Write the checkpoint of all processes: the state of the loader is the same on every one."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


if __name__ == "__main__":
    main()
