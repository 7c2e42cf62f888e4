"""python -m tests.reader.trainer OUTPUT STATE LOG [OPTIONS]: what one rank of a training job does, for tests to kill.

Writes a line (epoch, ids, crc32 of the tensor) to LOG for each batch; rank 0 then writes the state to STATE, as a
checkpoint after each step.
"""

from __future__ import annotations

import argparse
import json
import os
import zlib
from pathlib import Path

import torch

import latentmill


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("state", type=Path)
    parser.add_argument("log", type=Path)
    for name, default in [("rank", 0), ("world", 1), ("parallel", 1), ("workers", 0), ("epochs", 1), ("batch-size", 2)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--method", default="fork")
    parser.add_argument("--resume", help="a state to begin with")
    parser.add_argument("--hold", type=int, default=-1, help="after so many batches, wait to be killed")
    args = parser.parse_args()
    latents = latentmill.open(args.output)
    options = {"multiprocessing_context": args.method} if args.workers else {}
    loader = latents.loader(
        batch_size=args.batch_size,
        seed=3,
        rank=args.rank,
        world_size=args.world,
        context_parallel_size=args.parallel,
        workers=args.workers,
        drop_last=False,
        **options,
    )
    if args.resume:
        loader.load_state_dict(json.loads(Path(args.resume).read_text()))
    count = 0
    with args.log.open("a") as log:
        while loader.epoch < args.epochs:
            for batch in loader:
                content = batch["latent"].view(torch.uint8).numpy().tobytes()
                log.write(json.dumps([loader.epoch, batch["id"], zlib.crc32(content)]) + "\n")
                log.flush()
                if args.rank == 0:
                    args.state.write_text(json.dumps(loader.state_dict()))
                count += 1
                if count == args.hold:
                    print("holding", flush=True)
                    os.read(0, 1)


if __name__ == "__main__":
    main()
