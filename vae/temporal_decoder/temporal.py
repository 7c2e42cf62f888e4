"""Blocks that mix frames, for decoders of image-to-video models (Stable Video Diffusion).

Tensors are (B*T, C, H, W), frames fastest; `timesteps` is T, one for the whole batch. These blocks are not causal: a
clip is decoded whole. `skip_video=True` runs only the image part and needs no timesteps.

Two blocks blend an image branch and a video branch by a factor `alpha`, in OPPOSITE ways, as their checkpoints need:

    VideoResBlock    alpha * temporal + (1 - alpha) * spatial
    VideoBlock       alpha * spatial  + (1 - alpha) * temporal

so both have `spatial_weight()`. With merge_strategy "learned" alpha is sigmoid(mix_factor), 0.5 for mix_factor 0; with
"fixed" it is mix_factor itself, a saved buffer. The same checkpoint gives a different alpha with the other strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vae.temporal_decoder.image_blocks import AttnBlock, ResnetBlock
from vae.temporal_decoder.transformer import VideoTransformerBlock, check_rows, timestep_embedding, to_clips, to_frames

MergeStrategy = Literal["fixed", "learned"]

KernelSize = int | Sequence[int]


class TimeStack(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))) over time and space; starts as the identity (last layer zero).

    Layout (B, C, T, H, W). Its norms have eps 1e-5, those of the image part 1e-6.
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
            ValueError: neither this call nor the constructor gives timesteps, or they do not divide the rows.
        """
        spatial = self.spatial(x, temb)
        if skip_video:
            return spatial
        clips = to_clips(spatial, self.timesteps if timesteps is None else timesteps)
        alpha = self.get_alpha().to(x.dtype)
        return to_frames(alpha * self.time_stack(clips) + (1.0 - alpha) * clips)


class AE3DConv(nn.Conv2d):
    """A 2-D convolution on each frame, then a 3-D one over the clip. No residual: a new one is not the identity."""

    def __init__(
        self, in_channels: int, out_channels: int, video_kernel_size: KernelSize = 3, *args: Any, **kwargs: Any
    ) -> None:
        """Build both convolutions; `args` and `kwargs` are the arguments of Conv2d from kernel_size on."""
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
        """(B*T, C, H, W) to the same. `skip_time_block` is the name of `skip_video` in the memory-efficient class.

        Raises:
            ValueError: timesteps are not given, or do not divide the rows.
        """
        if skip_video or skip_time_block:
            return self.spatial(x)
        num_frames = check_rows(x.shape[0], timesteps)
        spatial = self.attention(x).flatten(2).transpose(1, 2)
        steps = timestep_embedding(torch.arange(num_frames, device=x.device), self.in_channels).to(x.dtype)
        embedding = self.video_time_embed(steps).repeat(x.shape[0] // num_frames, 1)[:, None]
        temporal = self.time_mix_block(spatial + embedding, num_frames)
        alpha = self.get_alpha().to(x.dtype)
        blend = alpha * spatial + (1.0 - alpha) * temporal
        h: Tensor = self.proj_out(blend.transpose(1, 2).reshape(x.shape))
        return x + h


class MemoryEfficientVideoBlock(VideoBlock):
    """VideoBlock under the name in xformers configs; scaled_dot_product_attention makes separate code unnecessary."""


def make_time_attn(
    in_channels: int,
    attn_type: str = "vanilla",
    attn_kwargs: dict[str, Any] | None = None,
    alpha: float = 0.0,
    merge_strategy: MergeStrategy = "learned",
) -> VideoBlock:
    """Build attention within and across frames.

    Raises:
        ValueError: a type other than vanilla and vanilla-xformers, or attn_kwargs, which have no effect on these.
    """
    classes = {"vanilla": VideoBlock, "vanilla-xformers": MemoryEfficientVideoBlock}
    if attn_type not in classes:
        raise ValueError(
            f"attn_type must be one of {', '.join(classes)} for attention across frames, got {attn_type!r}"
        )
    if attn_kwargs:
        raise ValueError(f"attn_kwargs have no effect on {attn_type!r}, got {attn_kwargs}")
    return classes[attn_type](in_channels, alpha=alpha, merge_strategy=merge_strategy)


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
