"""CogVideo finetune: T2VDatasetWithResize, with a trainer that has its arguments and encodes nothing.

decord and torchvision, with which it would decode a video whose latent is missing, are left out. Batches are stacked as
its trainers' collate functions stack them.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

from script import empty_package, run


def encodes(_: Any) -> None:
    raise AssertionError("the cache lacks something: the trainer encodes it")


def main(checkout: str, export: str, out: str) -> None:
    sys.path.insert(0, checkout)
    import torch
    from accelerate import Accelerator

    transforms = types.SimpleNamespace(Compose=lambda steps: steps, Lambda=lambda step: step)
    empty_package("torchvision", transforms=transforms)
    empty_package("torchvision.transforms")
    empty_package("torchvision.transforms.functional", resize=None)
    empty_package("decord", bridge=types.SimpleNamespace(set_bridge=lambda name: None))
    from finetune.datasets import T2VDatasetWithResize

    args = types.SimpleNamespace(data_root=Path(export), train_resolution=(5, 16, 32), model_name="cogvideox1.5-t2v")
    trainer = types.SimpleNamespace(args=args, encode_video=encodes, encode_text=encodes, accelerator=Accelerator())
    names = {"caption_column": "prompts.txt", "video_column": "videos.txt"}
    dataset = T2VDatasetWithResize(5, 16, 32, export, **names, trainer=trainer)
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=list)
    batches, start = [], 0
    for samples in loader:
        batch = {name: torch.stack([one[name] for one in samples]) for name in ("encoded_video", "prompt_embedding")}
        batches.append(([video.stem for video in dataset.videos[start : start + len(samples)]], batch))
        start += len(samples)
    torch.save({"buckets": {"all": len(dataset)}, "batches": batches}, out)


if __name__ == "__main__":
    run(main)
