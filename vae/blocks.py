"""The blocks of the causal 3D encoder: normalisation, down- and upsampling, residual block, attention within a frame.

Layout of every tensor: (B, C, T, H, W). Attribute names are those of the MoVQ and SAT checkpoints.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae import kernels
from vae.causal import Cache, CausalConv3d, PadMode
from vae.kernels.pieces import in_pieces
from vae.shapes import PoolRule


def get_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    """Return the sinusoidal embedding of DDPM: (N,) to (N, embedding_dim) float32, sines first.

    Frequencies are exp(-ln(10000) * i / (half - 1)). VideoBlock uses a different one, `timestep_embedding`.

    Raises:
        ValueError: rank other than 1, or fewer than 4 dimensions, for which the frequencies are undefined.
    """
    if timesteps.ndim != 1 or embedding_dim < 4:
        raise ValueError(f"need timesteps of rank 1 and embedding_dim >= 4, got {timesteps.shape = }, {embedding_dim}")
    half = embedding_dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) * (-math.log(10000.0) / (half - 1))
    # exp in float64: in float32 it differs by a bit between vector units, which is 3e-5 of a sine at timestep 1000.
    angles = timesteps.float()[:, None] * exponent.double().exp().float()[None]
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, embedding_dim % 2))


class Normalize3D(nn.GroupNorm):
    """GroupNorm over 32 groups, eps 1e-6. The statistics of a clip run over T, H and W, so over all of its frames."""

    def __init__(self, in_channels: int) -> None:
        if in_channels % 32:
            raise ValueError(f"channels must be a multiple of 32 (GroupNorm has 32 groups), got {in_channels}")
        super().__init__(32, in_channels, eps=1e-6, affine=True)


class NormalizeChannels(nn.RMSNorm):
    """RMS over the channels of each position by itself (Wan): no statistics over time or space."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same."""
        return kernels.rms_norm(x, self)


class DownSample3D(nn.Module):
    """Halve height and width; with `compress_time`, first halve the number of frames."""

    def __init__(
        self, in_channels: int, with_conv: bool, compress_time: bool = False, out_channels: int | None = None
    ) -> None:
        super().__init__()
        if not with_conv and out_channels not in (None, in_channels):
            raise ValueError(f"out_channels={out_channels} needs with_conv=True: pooling keeps {in_channels} channels")
        self.with_conv = with_conv
        self.compress_time = compress_time
        if with_conv:
            self.conv = nn.Conv2d(in_channels, out_channels or in_channels, kernel_size=3, stride=2, padding=0)

    def forward(self, x: Tensor, rule: PoolRule = "first") -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H // 2, W // 2); `vae.shapes.PoolRule` gives T'.

        Raises:
            ValueError: rule `first` and T = 2.
        """
        frames = self.pooled(x, rule)
        if self.with_conv:
            return as_clips(in_pieces(self.conv, frames, self.conv.out_channels, frames=0), x.shape[0])
        return as_clips(F.avg_pool2d(frames, kernel_size=2, stride=2), x.shape[0])

    def pooled(self, x: Tensor, rule: PoolRule) -> Tensor:
        """Return the frames (B*T', C, H, W) that are halved in space: pooled in time, with a zero edge for the kernel.

        The kernel with stride 2 reaches one row and one column over the bottom and right edge.
        """
        edge = 1 if self.with_conv else 0
        x = kernels.pool_time(x, rule, edge) if self.compress_time else F.pad(x, (0, edge, 0, edge))
        batch, channels, num_frames, height, width = x.shape
        return x.transpose(1, 2).reshape(batch * num_frames, channels, height, width)


class Upsample3D(nn.Module):
    """Double height and width by repetition; with `compress_time`, also repeat every frame but the first."""

    def __init__(self, in_channels: int, with_conv: bool, compress_time: bool = False) -> None:
        super().__init__()
        self.with_conv = with_conv
        self.compress_time = compress_time
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, T', 2H, 2W), T' = 2T - 1 with `compress_time`, else T."""
        if self.compress_time:
            x = torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(2, dim=2)], dim=2)
        x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        if not self.with_conv:
            return x
        return as_clips(self.conv(x.transpose(1, 2).flatten(0, 1)), x.shape[0])


class ResnetBlock3D(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x))) + temb))), with a convolution on x where channels change."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float,
        temb_channels: int = 512,
        pad_mode: PadMode = "constant",
        norm: type[Normalize3D | NormalizeChannels] = Normalize3D,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.temb_channels = temb_channels
        self.norm1 = norm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, pad_mode)
        if temb_channels > 0:
            self.temb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, pad_mode)
        self.conv_shortcut: CausalConv3d | None = None
        self.nin_shortcut: nn.Conv3d | None = None
        if in_channels != out_channels and conv_shortcut:
            self.conv_shortcut = CausalConv3d(in_channels, out_channels, 3, pad_mode)
        elif in_channels != out_channels:
            self.nin_shortcut = nn.Conv3d(in_channels, out_channels, kernel_size=1)

    def forward(
        self, x: Tensor, temb: Tensor | None = None, cache: Cache | None = None, *, overwrite: bool = False
    ) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, H, W).

        Args:
            x: the input.
            temb: (B, temb_channels), the same for all frames.
            cache: state of a stream, updated in place; None for a whole clip.
            overwrite: the caller no longer needs x, so the result may be written into its memory.
        """
        if temb is not None and self.temb_channels <= 0:
            raise ValueError("temb was given, but the block was built with temb_channels=0")
        h = self.conv1.through(x, cache, "conv1", norm=self.norm1, residual=kernels.accumulator(x, self.out_channels))
        if temb is not None:
            h = h + self.temb_proj(F.silu(temb))[:, :, None, None, None]
        if self.conv_shortcut is not None:
            x = self.conv_shortcut.through(x, cache, "conv_shortcut")
        elif self.nin_shortcut is not None:
            x = in_pieces(partial(kernels.conv3d, conv=self.nin_shortcut), x, self.out_channels)
        elif kernels.is_fast() and not overwrite:
            x = x.clone()
        if self.training and self.dropout.p > 0:
            return self.conv2.through(self.dropout(kernels.norm_silu(h, self.norm2)), cache, "conv2", residual=x)
        return self.conv2.through(h, cache, "conv2", norm=self.norm2, residual=x)


class AttnBlock2D(nn.Module):
    """Single-head self-attention over the pixels of each frame; frames meet only in the normalisation."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.norm = Normalize3D(in_channels)
        self.q = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.k = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.v = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        frames = kernels.group_norm(x, self.norm).transpose(1, 2).flatten(0, 1)
        q, k, v = (conv(frames).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        tokens = F.scaled_dot_product_attention(q, k, v)[:, 0]
        h = self.proj_out(tokens.transpose(1, 2).reshape(frames.shape))
        return x + as_clips(h, x.shape[0])


def as_clips(frames: Tensor, batch: int) -> Tensor:
    """(B*T, C, H, W) to (B, C, T, H, W), a view."""
    return frames.reshape(batch, -1, *frames.shape[1:]).transpose(1, 2)
