"""Blocks that mix frames, for decoders of the image-to-video kind (Stable Video Diffusion).

Tensors are (B*T, C, H, W), frames fastest; `timesteps` is T, one for the whole batch. Nothing here is causal: a clip is
decoded whole. `skip_video=True` leaves the image part alone and needs no timesteps.

Two blocks blend an image branch and a video branch by a factor `alpha`, in OPPOSITE senses, as their checkpoints need:

    VideoResBlock    alpha * temporal + (1 - alpha) * spatial
    VideoBlock       alpha * spatial  + (1 - alpha) * temporal

so both offer `spatial_weight()`. With merge_strategy "learned" alpha is sigmoid(mix_factor), 0.5 for mix_factor 0; with
"fixed" it is mix_factor itself, a buffer that is saved. One checkpoint means another alpha under the other strategy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vae.image_blocks import AttnBlock, ResnetBlock

MergeStrategy = Literal["fixed", "learned"]

KernelSize = int | Sequence[int]


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of VideoBlock: (N,) to (N, dim) float32, cosines first, a zero column where dim is odd.

    Frequencies are exp(-ln(max_period) * i / half). `get_timestep_embedding` is another one.
    """
    half = dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    # exp in float64: float32's differs by a bit between vector units, which is 3e-5 of a sine at timestep 1000.
    angles = timesteps.float()[:, None] * exponent.double().exp().float()[None]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


class TimeStack(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))) over time and space; starts as the identity (last layer zero).

    Layout (B, C, T, H, W). Its norms have eps 1e-5, unlike the image part's 1e-6.
    """

    def __init__(self, channels: int, kernel_size: KernelSize, dropout: float) -> None:
        super().__init__()
        kernel, padding = _kernel(kernel_size)
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels, eps=1e-5), nn.SiLU(), nn.Conv3d(channels, channels, kernel, padding=padding)
        )
        last = nn.Conv3d(channels, channels, kernel, padding=padding)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, channels, eps=1e-5), nn.SiLU(), nn.Dropout(dropout), last)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.out_layers(self.in_layers(x))
        return x + h


class VideoResBlock(ResnetBlock):
    """The image block, then a blend with a residual stack over time. ALPHA WEIGHS THE TEMPORAL BRANCH."""

    mix_factor: Tensor

    def __init__(
        self,
        out_channels: int,
        *,
        in_channels: int,
        dropout: float = 0.0,
        video_kernel_size: KernelSize | None = 3,
        alpha: float = 0.0,
        merge_strategy: MergeStrategy = "learned",
        conv_shortcut: bool = False,
        temb_channels: int = 512,
        timesteps: int | None = None,
    ) -> None:
        """Build both branches. `video_kernel_size` None means [3, 1, 1]; `timesteps` is forward's default."""
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            conv_shortcut=conv_shortcut,
            dropout=dropout,
            temb_channels=temb_channels,
        )
        self.timesteps = timesteps
        self.merge_strategy = merge_strategy
        self.time_stack = TimeStack(
            out_channels, (3, 1, 1) if video_kernel_size is None else video_kernel_size, dropout
        )
        _add_mix_factor(self, alpha, merge_strategy)

    def get_alpha(self) -> Tensor:
        """Weight of the temporal branch."""
        return _alpha(self.mix_factor, self.merge_strategy)

    def spatial_weight(self) -> Tensor:
        """Weight of the image branch, 1 - alpha."""
        return 1.0 - self.get_alpha()

    def forward(
        self, x: Tensor, temb: Tensor | None = None, skip_video: bool = False, timesteps: int | None = None
    ) -> Tensor:
        """(B*T, C, H, W) to (B*T, C', H, W); `temb` is (B*T, temb_channels).

        Raises:
            ValueError: no timesteps, neither here nor in the constructor, or rows that they do not divide.
        """
        spatial = self.spatial(x, temb)
        if skip_video:
            return spatial
        clips = to_clips(spatial, self.timesteps if timesteps is None else timesteps)
        alpha = self.get_alpha().to(x.dtype)
        return to_frames(alpha * self.time_stack(clips) + (1.0 - alpha) * clips)


class AE3DConv(nn.Conv2d):
    """A 2-D convolution on each frame, then a 3-D one over the clip, with no residual: a fresh one is not neutral."""

    def __init__(
        self, in_channels: int, out_channels: int, video_kernel_size: KernelSize = 3, *args: Any, **kwargs: Any
    ) -> None:
        """Further arguments are those of Conv2d, from kernel_size on."""
        super().__init__(in_channels, out_channels, *args, **kwargs)
        kernel, padding = _kernel(video_kernel_size)
        self.time_mix_conv = nn.Conv3d(out_channels, out_channels, kernel, padding=padding)

    def forward(self, x: Tensor, timesteps: int | None = None, skip_video: bool = False) -> Tensor:
        """(B*T, C, H, W) to (B*T, C', H', W')."""
        x = super().forward(x)
        if skip_video:
            return x
        mixed: Tensor = self.time_mix_conv(to_clips(x, timesteps))
        return to_frames(mixed)


class GEGLU(nn.Module):
    """value * gelu(gate), both from one projection; gelu by erf."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner_dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = torch.chunk(self.proj(x), 2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU with four times the width, then back."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.net(x)
        return h


class SelfAttention(nn.Module):
    """Attention of (N, L, dim) tokens among themselves, without a mask."""

    def __init__(self, dim: int, n_heads: int, d_head: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.to_q = nn.Linear(dim, n_heads * d_head, bias=False)
        self.to_k = nn.Linear(dim, n_heads * d_head, bias=False)
        self.to_v = nn.Linear(dim, n_heads * d_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(n_heads * d_head, dim), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        heads = (*x.shape[:2], self.n_heads, -1)
        q, k, v = (project(x).reshape(heads).transpose(1, 2) for project in (self.to_q, self.to_k, self.to_v))
        h: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h


class VideoTransformerBlock(nn.Module):
    """Attention across frames for every position by itself.

    `attn2` is a second self-attention: the class it comes from attends to a context there, and here is none.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int = 1,
        d_head: int | None = None,
        dropout: float = 0.0,
        checkpoint: bool = False,
        ff_in: bool = True,
    ) -> None:
        """Build it; `checkpoint` computes activations again in the backward pass instead of keeping them."""
        super().__init__()
        d_head = dim // n_heads if d_head is None else d_head
        self.checkpoint = checkpoint
        self.norm_in = nn.LayerNorm(dim) if ff_in else None
        self.ff_in = FeedForward(dim, dropout) if ff_in else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = SelfAttention(dim, n_heads, d_head, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = SelfAttention(dim, n_heads, d_head, dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, dropout)

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        """(B*T, S, C) tokens to the same."""
        num_rows, num_positions, channels = x.shape
        _check_rows(num_rows, timesteps)
        x = x.reshape(-1, timesteps, num_positions, channels).transpose(1, 2).flatten(0, 1)
        if self.checkpoint and torch.is_grad_enabled():
            x = recompute(self._mix, x, use_reentrant=False)
        else:
            x = self._mix(x)
        return x.reshape(-1, num_positions, timesteps, channels).transpose(1, 2).flatten(0, 1)

    def _mix(self, x: Tensor) -> Tensor:
        if self.ff_in is not None and self.norm_in is not None:
            x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        h: Tensor = self.ff(self.norm3(x))
        return x + h


class VideoBlock(AttnBlock):
    """Attention within frames, then a blend with attention across frames. ALPHA WEIGHS THE SPATIAL BRANCH."""

    mix_factor: Tensor

    def __init__(self, in_channels: int, alpha: float = 0.0, merge_strategy: MergeStrategy = "learned") -> None:
        super().__init__(in_channels)
        self.merge_strategy = merge_strategy
        self.time_mix_block = VideoTransformerBlock(in_channels)
        self.video_time_embed = nn.Sequential(
            nn.Linear(in_channels, 4 * in_channels), nn.SiLU(), nn.Linear(4 * in_channels, in_channels)
        )
        _add_mix_factor(self, alpha, merge_strategy)

    def get_alpha(self) -> Tensor:
        """Weight of the spatial branch."""
        return _alpha(self.mix_factor, self.merge_strategy)

    def spatial_weight(self) -> Tensor:
        """Weight of the image branch, alpha itself."""
        return self.get_alpha()

    def forward(
        self, x: Tensor, timesteps: int | None = None, skip_video: bool = False, skip_time_block: bool = False
    ) -> Tensor:
        """(B*T, C, H, W) to the same. `skip_time_block` is the memory-efficient class's name for `skip_video`.

        Raises:
            ValueError: no timesteps, or rows that they do not divide.
        """
        if skip_video or skip_time_block:
            return self.spatial(x)
        num_frames = _check_rows(x.shape[0], timesteps)
        spatial = self.attention(x).flatten(2).transpose(1, 2)
        steps = timestep_embedding(torch.arange(num_frames, device=x.device), self.in_channels).to(x.dtype)
        embedding = self.video_time_embed(steps).repeat(x.shape[0] // num_frames, 1)[:, None]
        temporal = self.time_mix_block(spatial + embedding, num_frames)
        alpha = self.get_alpha().to(x.dtype)
        blend = alpha * spatial + (1.0 - alpha) * temporal
        h: Tensor = self.proj_out(blend.transpose(1, 2).reshape(x.shape))
        return x + h


class MemoryEfficientVideoBlock(VideoBlock):
    """VideoBlock under the name that xformers configs ask for; scaled_dot_product_attention needs no other code."""


def make_time_attn(
    in_channels: int,
    attn_type: str = "vanilla",
    attn_kwargs: dict[str, Any] | None = None,
    alpha: float = 0.0,
    merge_strategy: MergeStrategy = "learned",
) -> VideoBlock:
    """Build attention within and across frames.

    Raises:
        ValueError: another type than vanilla and vanilla-xformers, or attn_kwargs, which neither takes.
    """
    classes = {"vanilla": VideoBlock, "vanilla-xformers": MemoryEfficientVideoBlock}
    if attn_type not in classes:
        raise ValueError(
            f"attn_type must be one of {', '.join(classes)} for attention across frames, got {attn_type!r}"
        )
    if attn_kwargs:
        raise ValueError(f"attn_kwargs have no effect on {attn_type!r}, got {attn_kwargs}")
    return classes[attn_type](in_channels, alpha=alpha, merge_strategy=merge_strategy)


def to_clips(x: Tensor, timesteps: int | None) -> Tensor:
    """(B*T, C, H, W) to (B, C, T, H, W).

    Raises:
        ValueError: timesteps is None, or does not divide the rows.
    """
    num_frames = _check_rows(x.shape[0], timesteps)
    return x.reshape(-1, num_frames, *x.shape[1:]).transpose(1, 2)


def to_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B*T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _check_rows(num_rows: int, timesteps: int | None) -> int:
    if timesteps is None:
        raise ValueError("timesteps (frames per clip) must be given, or skip_video=True")
    if timesteps < 1 or num_rows % timesteps:
        raise ValueError(f"timesteps must divide the {num_rows} rows (B*T), got {timesteps}")
    return timesteps


def _kernel(kernel_size: KernelSize) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    kernel = (kernel_size,) * 3 if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(kernel) != 3 or any(k < 1 or k % 2 == 0 for k in kernel):
        raise ValueError(f"video_kernel_size must be an odd int or three of them, got {kernel_size}")
    return (kernel[0], kernel[1], kernel[2]), (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)


def _add_mix_factor(module: nn.Module, alpha: float, merge_strategy: str) -> None:
    if merge_strategy not in get_args(MergeStrategy):
        raise ValueError(f"merge_strategy must be one of fixed, learned, got {merge_strategy!r}")
    value = torch.tensor([float(alpha)])
    if merge_strategy == "fixed":
        module.register_buffer("mix_factor", value)
    else:
        module.mix_factor = nn.Parameter(value)


def _alpha(mix_factor: Tensor, merge_strategy: str) -> Tensor:
    return mix_factor if merge_strategy == "fixed" else mix_factor.sigmoid()
