"""NeMo Automodel: TextToVideoDataset with its bucket sampler, collate function and stateful loader."""

from __future__ import annotations

import sys
from pathlib import Path

from script import run


def main(checkout: str, export: str, out: str) -> None:
    sys.path.insert(0, checkout)
    import torch
    from nemo_automodel.components.datasets.diffusion.collate_fns import build_video_multiresolution_dataloader

    loader, sampler = build_video_multiresolution_dataloader(
        cache_dir=export, batch_size=3, drop_last=False, num_workers=0, pin_memory=False
    )
    dataset = loader.dataset
    ids = [[Path(dataset.metadata[i]["cache_file"]).stem for i in batch] for batch in sampler]
    batches = list(zip(ids, loader, strict=True))
    torch.save({"buckets": dataset.get_bucket_info()["buckets"], "batches": batches}, out)


if __name__ == "__main__":
    run(main)
