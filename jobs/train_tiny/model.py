"""The networks of `tiny`: an Encoder3D with CogVideoX's compression, and the Decoder3D that mirrors it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae.checkpoints.tiny import DECODER_CONFIG, TINY_CONFIG
from vae.decoder import Decoder3D
from vae.encoder import Encoder3D
from vae.posterior import DiagonalGaussianDistribution


class TinyVAE(nn.Module):
    """Encoder and decoder together, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder3D(**TINY_CONFIG)
        self.decoder = Decoder3D(**DECODER_CONFIG)

    def forward(self, pixels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Return the pixels that come back, and the posterior. Without noise, the mean is decoded."""
        posterior = DiagonalGaussianDistribution(self.encoder(pixels))
        z = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return self.decoder(z), posterior

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the mean of the posterior, (B, 16, T', H', W')."""
        return DiagonalGaussianDistribution(self.encoder(pixels)).mean

    @torch.no_grad()
    def restore(self, pixels: Tensor) -> Tensor:
        """Return the pixels that come back from the mean."""
        restored: Tensor = self.decoder(self.encode(pixels))
        return restored
