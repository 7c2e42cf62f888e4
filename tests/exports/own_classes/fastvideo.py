"""FastVideo: LatentsParquetMapStyleDataset (or LTX2PrecomputedDataset, if the export is one for LTX-2) with its sampler
and loader, in a world of one process.

The packages `fastvideo` and `fastvideo.dataset` are made empty, so that only the modules below them are imported that
the dataset needs. torchvision, which one of these imports for a function that is not called, is left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from script import empty_package, run


def main(checkout: str, export: str, out: str) -> None:
    sys.path.insert(0, checkout)
    import torch
    from diffusers.loaders.lora_base import _best_guess_weight_name  # noqa: F401 (while torchvision is as it is)

    empty_package("fastvideo", f"{checkout}/fastvideo")
    empty_package("fastvideo.dataset", f"{checkout}/fastvideo/dataset")
    empty_package("torchvision")
    empty_package("torchvision.utils", make_grid=None)
    from fastvideo.dataset.dataloader.schema import pyarrow_schema_t2v
    from fastvideo.dataset.ltx2_precomputed_dataset import build_ltx2_precomputed_dataloader
    from fastvideo.dataset.parquet_dataset_map_style import build_parquet_map_style_dataloader
    from fastvideo.distributed import maybe_init_distributed_environment_and_model_parallel

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    maybe_init_distributed_environment_and_model_parallel(1, 1, distributed_init_method=f"file://{out}.store")
    if Path(export, ".precomputed").exists():
        dataset, loader = build_ltx2_precomputed_dataloader(export, 2, 0, drop_last=False)
        files = dataset.sample_files["latents"]
        batches = [([files[int(i)].stem for i in batch["idx"]], batch) for batch in loader]
    else:
        dataset, loader = build_parquet_map_style_dataloader(
            export, 2, 0, pyarrow_schema_t2v, drop_last=False, text_padding_length=6
        )
        batches = [([info["id"] for info in batch["info_list"]], batch) for batch in loader]
    torch.save({"buckets": {"all": len(dataset)}, "batches": batches}, out)


if __name__ == "__main__":
    run(main)
