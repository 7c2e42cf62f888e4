"""The LTX-2 trainer: PrecomputedDataset in torch's DataLoader, as its trainer makes it."""

from __future__ import annotations

import sys

from script import run


def main(checkout: str, export: str, out: str) -> None:
    sys.path.insert(0, f"{checkout}/packages/ltx-trainer/src")
    import torch
    from ltx_trainer.datasets import PrecomputedDataset

    dataset = PrecomputedDataset(export, data_sources={"latents": "latents", "conditions": "conditions"})
    ids = [path.stem for path in dataset.sample_files["latents"]]
    batches = [
        ([ids[int(i)] for i in batch["idx"]], batch)
        for batch in torch.utils.data.DataLoader(dataset, batch_size=3, shuffle=True)
    ]
    torch.save({"buckets": {"all": len(dataset)}, "batches": batches}, out)


if __name__ == "__main__":
    run(main)
