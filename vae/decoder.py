"""Decoder3D: the mirror of Encoder3D out of the same blocks. Latents of a clip to its pixels, first frame alone.

    z -> conv_in -> mid -> upsample -> block -> norm, silu, conv_out -> spread
    z -> linear  ---------------------------------------------------> spread, added

`linear` is one convolution that predicts all pixels of a latent cell; the blocks add what a linear code cannot know.
Only the spreading runs at the resolution of the pixels, where a block would cost as much as all others together.

Layout of every tensor: (B, C, T, H, W).
"""

from __future__ import annotations

from torch import Tensor, nn

from vae import kernels
from vae.blocks import Normalize3D, ResnetBlock3D, Upsample3D
from vae.causal import CausalConv3d, PadMode


class Decoder3D(nn.Module):
    """Latents (B, z_channels, T', H', W') to pixels (B, out_channels, 4T' - 3, 8H', 8W'): a causal decoder."""

    def __init__(self, *, channels: int, z_channels: int, out_channels: int = 3, pad_mode: PadMode = "first") -> None:
        """Build the layers.

        Args:
            channels: of all blocks; a multiple of 32.
            z_channels: latent channels.
            out_channels: channels of the pixels.
            pad_mode: padding in time of every causal convolution.
        """
        super().__init__()
        self.z_channels = z_channels
        self.linear = CausalConv3d(z_channels, out_channels * 4 * 8 * 8, 3, pad_mode)
        self.conv_in = CausalConv3d(z_channels, channels, 3, pad_mode)
        self.mid = ResnetBlock3D(in_channels=channels, dropout=0.0, temb_channels=0, pad_mode=pad_mode)
        self.upsample = Upsample3D(channels, with_conv=True, compress_time=True)
        self.block = ResnetBlock3D(in_channels=channels, dropout=0.0, temb_channels=0, pad_mode=pad_mode)
        self.norm_out = Normalize3D(channels)
        self.conv_out = CausalConv3d(channels, out_channels * 2 * 4 * 4, 3, pad_mode)

    def forward(self, z: Tensor) -> Tensor:
        """Decode a whole clip; pixels are about in [-1, 1].

        Raises:
            ValueError: wrong rank or channels.
        """
        if z.ndim != 5 or z.shape[1] != self.z_channels:
            raise ValueError(f"z must be (B, {self.z_channels}, T', H', W'), got {tuple(z.shape)}")
        with kernels.plain():
            h = self.block(self.upsample(self.mid(self.conv_in(z))))
            fine = self.conv_out(h, norm=self.norm_out)
            # The first latent frame stands for one frame of video: the last one of those that it spreads over.
            return spread(self.linear(z), 4, 8)[:, :, 3:] + spread(fine, 2, 4)[:, :, 1:]


def spread(x: Tensor, times: int, size: int) -> Tensor:
    """Spread channels over time and space: (B, C * times * size * size, T, H, W) to (B, C, times T, size H, size W)."""
    batch, channels, num_frames, height, width = x.shape
    cells = x.reshape(batch, channels // (times * size * size), times, size, size, num_frames, height, width)
    return cells.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, -1, num_frames * times, height * size, width * size)
