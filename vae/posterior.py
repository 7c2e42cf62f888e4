"""The Gaussian posterior that the moments of an encoder describe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """q(z|x) = N(mean, diag(var)) from moments stacked on the channel axis.

    `mean`, `logvar` (clamped to [-30, 20]), `std` and `var` have the shape and dtype of half the moments;
    `parameters` are the moments as given. `deterministic` makes `std` and `var` zero.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        """Split moments of shape (B, 2C, ...).

        Raises:
            ValueError: the channel axis has an odd length.
        """
        if parameters.ndim < 2 or parameters.shape[1] % 2:
            raise ValueError(
                f"moments must have an even number of channels (mean, then logvar), got {parameters.shape = }"
            )
        self.parameters = parameters
        self.deterministic = deterministic
        mean, logvar = parameters.chunk(2, dim=1)
        self.mean = mean
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.zeros_like(mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = torch.zeros_like(mean) if deterministic else torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """Return the most likely latent, which is the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw mean + std * eps. The noise is drawn on the generator's device, in the dtype of the mean."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def kl(self, other: DiagonalGaussianDistribution | None = None, dims: Sequence[int] | None = None) -> Tensor:
        """Return the KL divergence from `other`, or from N(0, 1), in nats: summed over `dims`, or all but the batch.

        The reference sums dims 1, 2, 3 for any rank, so it does not sum W of a video; pass these dims to get the same.
        """
        if self.deterministic:
            return self.mean.new_zeros(1)
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            gap = (self.mean - other.mean).square() / other.var
            terms = gap + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=self._dims(dims))

    def nll(self, sample: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """Return the negative log likelihood of `sample` in nats, summed over `dims`, or all but the batch."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        terms = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=self._dims(dims))

    def _dims(self, dims: Sequence[int] | None) -> tuple[int, ...]:
        return tuple(range(1, self.mean.ndim)) if dims is None else tuple(dims)
