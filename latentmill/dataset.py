"""LatentDataset: the committed rows of an output as a map-style dataset for torch.

    latents = latentmill.open("s3://latents/v1")
    latents = latents.where(pc.field("height") == 480)
    latents[7]          # {"latent": Tensor[C, T', H', W'], "id": str, "key": str, "caption": str | None, ...}

Every method that selects rows or changes what they hold returns a new dataset, and reads nothing but the index; they
are those of `Rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latentmill.rows import Rows
from latentmill.statistics.pool import statistics_of

if TYPE_CHECKING:  # these import torch, which opening an output does not need
    from latentmill.loader import Loader
    from latentmill.statistics.pool import Statistics
    from latentmill.tensors import ReadAhead, Sample


class LatentDataset(Rows):
    """Rows of an output, made by `open`, for torch: `latents[i]`, batches for a DataLoader, and a loader."""

    def __getitem__(self, position: int) -> Sample:
        """Read one row: {"latent": Tensor[C, T', H', W'], and `columns`}.

        Raises:
            IndexError: there is no such position.
            DamagedRowError: the bytes of the row are not those that were written.
        """
        from latentmill.tensors import read_batch, teach_torch

        teach_torch()
        position = range(len(self))[position]
        return read_batch(self, [position], "raise")[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        """Read the rows of a batch at once, as torch's DataLoader asks for them. `collate` makes one batch of them."""
        from latentmill.tensors import teach_torch

        teach_torch()
        return self._ahead.samples(self, positions)

    @property
    def statistics(self) -> Statistics | None:
        """The pooled statistics of these rows; None unless their columns were opened (`format.STATISTICS`)."""
        return statistics_of(self)

    def loader(self, **options: Any) -> Loader:
        """Return the batches of one rank, in an order that resumes. `latentmill.Loader` describes the options."""
        from latentmill.loader import Loader

        return Loader(self, **options)

    @cached_property
    def _ahead(self) -> ReadAhead:
        from latentmill.tensors import ReadAhead

        return ReadAhead()
