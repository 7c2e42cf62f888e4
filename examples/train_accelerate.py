"""The same with Hugging Face accelerate: the loader is passed by, and every process opens its own part of the epoch.

pip install accelerate
accelerate launch --num_processes 2 --cpu examples/train_accelerate.py --output demo/latents/tars
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from train import Denoiser, step

import latentmill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="demo/latents/tars")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=2)
    args = parser.parse_args()
    accelerator = Accelerator()
    latents = latentmill.open(args.output)
    # Not through accelerator.prepare: it would deal the batches a second time.
    loader = latents.loader(
        batch_size=args.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        drop_last="wrap",
    )
    accelerator.register_for_checkpointing(loader)  # save_state and load_state carry its state
    model = Denoiser(next(iter(latents.shapes))[0])
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    for _ in range(args.epochs):
        for batch in loader:
            loss = step(model, batch["latent"].float().to(accelerator.device))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            accelerator.print(f"loss {loss.item():.4f} {' '.join(batch['key'])}", flush=True)


if __name__ == "__main__":
    main()
