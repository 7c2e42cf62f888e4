"""latentmill: read back what `latentmill encode` wrote, and train on it.

    import latentmill

    latents = latentmill.open("s3://latents/v1")
    loader = latents.loader(batch_size=4, seed=0, rank=rank, world_size=world)
    for batch in loader:
        batch["latent"]                      # [4, C, T', H', W'], one shape a batch
    state = loader.state_dict()              # resumes exactly, with any number of ranks and workers

Needs numpy, pyarrow and fsspec; torch where tensors are made. No Ray, no PyAV.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentmill.dataset import LatentDataset
    from latentmill.errors import (
        AccessError,
        DamagedRowError,
        EmptySelectionError,
        NotFoundError,
        OpenError,
        ReadError,
        StateError,
        StorageError,
    )
    from latentmill.loader import Loader
    from latentmill.opening import open
    from latentmill.sampler import BatchSampler
    from latentmill.tensors import collate

_HOMES = {
    "open": "opening",
    "LatentDataset": "dataset",
    "Loader": "loader",
    "BatchSampler": "sampler",
    "collate": "tensors",
} | dict.fromkeys(
    (
        *("ReadError", "OpenError", "EmptySelectionError", "StateError", "DamagedRowError"),
        *("StorageError", "NotFoundError", "AccessError"),
    ),
    "errors",
)

__all__ = [
    "AccessError",
    "BatchSampler",
    "DamagedRowError",
    "EmptySelectionError",
    "LatentDataset",
    "Loader",
    "NotFoundError",
    "OpenError",
    "ReadError",
    "StateError",
    "StorageError",
    "collate",
    "open",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import latentmill` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'latentmill' has no attribute {name!r}")
    return getattr(import_module(f"latentmill.{_HOMES[name]}"), name)
