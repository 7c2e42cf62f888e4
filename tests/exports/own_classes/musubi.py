"""musubi-tuner: VideoDataset and its bucket manager for Wan, made by its own reader of the exported dataset.toml."""

from __future__ import annotations

import argparse
import sys
from multiprocessing import Value

from script import run


def main(checkout: str, export: str, out: str) -> None:
    sys.path.insert(0, f"{checkout}/src")
    import torch
    from musubi_tuner.dataset import config_utils

    settings = config_utils.load_user_config(f"{export}/dataset.toml")
    settings["general"]["batch_size"] = 3
    generator = config_utils.BlueprintGenerator(config_utils.ConfigSanitizer())
    blueprint = generator.generate(settings, argparse.Namespace(debug_dataset=False), architecture="wan")
    epoch = Value("i", 1)  # the first one, in which the trainer shuffles
    group = config_utils.generate_dataset_group_by_blueprint(blueprint.dataset_group, training=True, shared_epoch=epoch)
    group.datasets[0].set_seed(0, epoch)
    group[0]
    manager = group.datasets[0].batch_manager
    batches = []
    for i in range(len(group)):
        size, number = manager.bucket_batch_indices[i]
        items = manager.buckets[size][3 * number : 3 * number + 3]
        batches.append(([item.item_key for item in items], group[i]))
    buckets = {"x".join(map(str, size)): len(items) for size, items in manager.buckets.items()}
    torch.save({"buckets": buckets, "batches": batches}, out)


if __name__ == "__main__":
    run(main)
