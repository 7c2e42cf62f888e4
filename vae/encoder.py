"""Encoder3D: the causal 3D encoder of MoVQ, of SAT's CogVideoX and of diffusers' AutoencoderKLCogVideoX.

    conv_in -> level 0 -> ... -> level L-1 -> mid (two residual blocks, no attention) -> norm, silu, conv_out

A level is `num_res_blocks` residual blocks, each followed by attention if the nominal resolution is in
`attn_resolutions`. All levels but the last end with a downsampling by 2 in space and, in the first
log2(temporal_compress_times) levels, in time.

One class serves three kinds of checkpoint. They differ in how a clip passes through it; each agrees with golden data of
its reference to 1e-5:

    forward     the whole clip at once, pooling rule "first"            MoVQ, SAT
    step        window by window with caches, rule "parity"             diffusers
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae import kernels
from vae.blocks import AttnBlock2D, DownSample3D, Normalize3D, ResnetBlock3D
from vae.causal import Cache, CausalConv3d, PadMode
from vae.kernels.traffic import begin
from vae.shapes import PoolRule, pooled_frames

EncoderCache = dict[str, Cache]
"""State of a stream between two windows: the caches of every causal convolution, by block. Plain dicts of tensors."""

_WITHOUT_EFFECT = frozenset({"gather_norm", "cp_size", "attn_type", "use_linear_attn"})
"""Arguments in shipped configs without effect: they are for the reference in several processes, or never read there."""


class Level(nn.Module):
    """One resolution: residual blocks, attention (none, or one per block), then an optional downsampling."""

    def __init__(self, block: list[ResnetBlock3D], attn: list[AttnBlock2D], downsample: DownSample3D | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(block)
        self.attn = nn.ModuleList(attn)
        self.downsample = downsample


class Mid(nn.Module):
    """The two residual blocks at the lowest resolution."""

    def __init__(self, channels: int, dropout: float, pad_mode: PadMode) -> None:
        super().__init__()
        self.block_1 = ResnetBlock3D(in_channels=channels, dropout=dropout, temb_channels=0, pad_mode=pad_mode)
        self.block_2 = ResnetBlock3D(in_channels=channels, dropout=dropout, temb_channels=0, pad_mode=pad_mode)


class Encoder3D(nn.Module):
    """(B, in_channels, T, H, W) to moments (B, 2 * z_channels, T', H', W')."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int | None = None,  # noqa: ARG002
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        pad_mode: PadMode = "first",
        temporal_compress_times: int = 4,
        **without_effect: object,
    ) -> None:
        """Build the layers top to bottom.

        Args:
            ch: channels of level 0 before its multiplier; a multiple of 32.
            out_ch: the decoder's output channels. No effect; configs share one set of arguments.
            ch_mult: channel multiplier of each level.
            num_res_blocks: residual blocks per level.
            attn_resolutions: nominal resolutions whose blocks are followed by attention.
            dropout: in the residual blocks, when training.
            resamp_with_conv: downsample by a strided convolution instead of by averaging.
            in_channels: channels of the input.
            resolution: nominal size that decides which levels have attention; inputs may have any size.
            z_channels: latent channels.
            double_z: output mean and logvar instead of the latent alone.
            pad_mode: padding in time of every causal convolution.
            temporal_compress_times: a power of two, at most 2 ** (levels - 1).
            without_effect: arguments of shipped configs that change nothing here (`gather_norm`, `cp_size`, ...).

        Raises:
            ValueError: an argument is out of its range.
            TypeError: an unknown argument.
        """
        super().__init__()
        unknown = sorted(set(without_effect) - _WITHOUT_EFFECT)
        if unknown:
            raise TypeError(f"Encoder3D has no argument {', '.join(unknown)}")
        _check(ch, ch_mult, num_res_blocks, temporal_compress_times)
        num_levels = len(ch_mult)
        self.in_channels = in_channels
        self.z_channels = z_channels
        self.double_z = double_z
        self.temporal_compress_times = temporal_compress_times
        self.spatial_compress_times = 2 ** (num_levels - 1)

        self.conv_in = CausalConv3d(in_channels, ch, 3, pad_mode)
        self.down = nn.ModuleList()
        block_in = ch
        for i in range(num_levels):
            block_out = ch * ch_mult[i]
            blocks, attentions = [], []
            for _ in range(num_res_blocks):
                block = ResnetBlock3D(
                    in_channels=block_in, out_channels=block_out, dropout=dropout, temb_channels=0, pad_mode=pad_mode
                )
                blocks.append(block)
                block_in = block_out
                if resolution // 2**i in attn_resolutions:
                    attentions.append(AttnBlock2D(block_in))
            compress_time = 2**i < temporal_compress_times
            downsample = DownSample3D(block_in, resamp_with_conv, compress_time) if i < num_levels - 1 else None
            self.down.append(Level(blocks, attentions, downsample))
        self.mid = Mid(block_in, dropout, pad_mode)
        self.norm_out = Normalize3D(block_in)
        self.conv_out = CausalConv3d(block_in, 2 * z_channels if double_z else z_channels, 3, pad_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a whole clip in one pass: T' = T -> 1 + (T-1)//2 for each temporal level.

        Raises:
            ValueError: wrong rank or channels, too small, or a T that leaves a pool with exactly two frames.
        """
        return self._run(x, None, "first")

    def step(self, x: Tensor, cache: EncoderCache | None = None) -> tuple[Tensor, EncoderCache]:
        """Encode the next window of a clip.

        The cache is consumed: each convolution frees its part while it runs, so that a long clip needs no more memory
        than a short one. To continue twice from one state, pass a copy made with `copy_cache`.

        Args:
            x: the next frames.
            cache: what the previous step returned; None at the start of a clip.

        Returns:
            The window's moments, and the cache for the next step.
        """
        cache = {} if cache is None else cache
        return self._run(x, cache, "parity"), cache

    def _run(self, x: Tensor, cache: EncoderCache | None, rule: PoolRule) -> Tensor:
        self._check_input(x, rule)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if kernels.is_fast() and kernels.has_passes(x):
            from vae import fused

            if fused.applies(self):
                return fused.encode(self, x, cache, rule)
        begin("conv_in")
        h = self.conv_in.through(x, _part(cache, "conv_in"), "conv")
        for i, level in enumerate(self.down):
            assert isinstance(level, Level)
            begin(f"level {i}")
            for j, block in enumerate(level.block):
                h = block(h, cache=_part(cache, f"down.{i}.block.{j}"), overwrite=True)
                if level.attn:
                    h = level.attn[j](h)
            if level.downsample is not None:
                h = level.downsample(h, rule)
        begin("mid")
        h = self.mid.block_1(h, cache=_part(cache, "mid.block_1"), overwrite=True)
        h = self.mid.block_2(h, cache=_part(cache, "mid.block_2"), overwrite=True)
        begin("conv_out")
        return self.conv_out.through(h, _part(cache, "conv_out"), "conv", norm=self.norm_out)

    def _check_input(self, x: Tensor, rule: PoolRule) -> None:
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"input must be (B, {self.in_channels}, T, H, W), got {tuple(x.shape)}")
        if min(x.shape[3:]) < self.spatial_compress_times:
            raise ValueError(f"height and width must be at least {self.spatial_compress_times}, got {tuple(x.shape)}")
        pooled_frames(x.shape[2], self.temporal_compress_times, rule)


def copy_cache(cache: EncoderCache) -> EncoderCache:
    """Copy the dicts of a cache but not its tensors: a step changes the dicts and never the tensors."""
    return {name: dict(part) for name, part in cache.items()}


def _part(cache: EncoderCache | None, name: str) -> Cache | None:
    return None if cache is None else cache.setdefault(name, {})


def _check(ch: int, ch_mult: Sequence[int], num_res_blocks: int, temporal_compress_times: int) -> None:
    if not ch_mult or num_res_blocks < 1:
        raise ValueError(f"need at least one level and one block, got {ch_mult = }, {num_res_blocks = }")
    if any(ch * m < 1 or (ch * m) % 32 for m in (1, *ch_mult)):
        raise ValueError(f"ch and ch * ch_mult must be multiples of 32 (GroupNorm has 32 groups), got {ch}, {ch_mult}")
    largest = 2 ** (len(ch_mult) - 1)
    if temporal_compress_times < 1 or temporal_compress_times & (temporal_compress_times - 1):
        raise ValueError(f"temporal_compress_times must be a power of two, got {temporal_compress_times}")
    if temporal_compress_times > largest:
        raise ValueError(
            f"temporal_compress_times must be at most {largest} ({len(ch_mult)} levels), got {temporal_compress_times}"
        )
