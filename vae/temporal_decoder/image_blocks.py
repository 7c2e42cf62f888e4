"""The 2-D blocks of the temporal decoder, which process each frame separately. Layout (N, C, H, W), N = B*T, T fastest.

Every forward takes `timesteps` and `skip_video` and ignores them, so that a decoder can mix these with temporal blocks.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

AttnType = Literal["vanilla", "vanilla-xformers", "none"]
"""vanilla and vanilla-xformers are one computation here (scaled_dot_product_attention); none is no attention."""


def normalize(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, eps 1e-6; statistics per frame.

    Raises:
        ValueError: channels are not a multiple of 32.
    """
    if channels % 32:
        raise ValueError(f"channels must be a multiple of 32 (GroupNorm has 32 groups), got {channels}")
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x))) + temb))), with a convolution on x where channels change."""

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float,
        temb_channels: int = 512,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.temb_channels = temb_channels
        self.norm1 = normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        if temb_channels > 0:
            self.temb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = normalize(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_shortcut: nn.Conv2d | None = None
        self.nin_shortcut: nn.Conv2d | None = None
        if in_channels != out_channels and conv_shortcut:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        elif in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(
        self, x: Tensor, temb: Tensor | None = None, skip_video: bool = False, timesteps: int | None = None
    ) -> Tensor:
        """(N, C, H, W) to (N, C', H, W); `temb` is (N, temb_channels)."""
        del skip_video, timesteps
        return self.spatial(x, temb)

    def spatial(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """The block on each frame by itself."""
        if temb is not None and self.temb_channels <= 0:
            raise ValueError("temb was given, but the block was built with temb_channels=0")
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        shortcut = self.conv_shortcut if self.conv_shortcut is not None else self.nin_shortcut
        return (x if shortcut is None else shortcut(x)) + h


class AttnBlock(nn.Module):
    """x + proj_out(attention(x)): single-head self-attention over the pixels of each frame."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.norm = normalize(in_channels)
        self.q = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.k = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.v = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, kernel_size=1)

    def attention(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same, before the output projection and without the residual."""
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)

    def forward(self, x: Tensor, timesteps: int | None = None, skip_video: bool = False) -> Tensor:
        """(N, C, H, W) to the same."""
        del timesteps, skip_video
        return self.spatial(x)

    def spatial(self, x: Tensor) -> Tensor:
        """The block on each frame by itself."""
        h: Tensor = self.proj_out(self.attention(x))
        return x + h


class NoAttention(nn.Module):
    """The identity, in place of attention, for attn_type "none"."""

    def forward(self, x: Tensor, timesteps: int | None = None, skip_video: bool = False) -> Tensor:
        del timesteps, skip_video
        return x


class FrameConv2d(nn.Conv2d):
    """A plain convolution on each frame."""

    def forward(self, x: Tensor, timesteps: int | None = None, skip_video: bool = False) -> Tensor:
        del timesteps, skip_video
        return super().forward(x)


class Upsample(nn.Module):
    """Double height and width by repetition, then an optional 3x3 convolution."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.with_conv = with_conv
        if with_conv:
            self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if self.with_conv else x


def make_attn(in_channels: int, attn_type: AttnType = "vanilla") -> AttnBlock | NoAttention:
    """Build attention within frames.

    Raises:
        ValueError: a type that is not implemented (linear and cross attention fail in the reference's forward too).
    """
    if attn_type in ("vanilla", "vanilla-xformers"):
        return AttnBlock(in_channels)
    if attn_type == "none":
        return NoAttention()
    raise ValueError(f"attn_type must be one of vanilla, vanilla-xformers, none, got {attn_type!r}")
