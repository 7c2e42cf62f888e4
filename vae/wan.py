"""WanEncoder: the causal encoder of Wan 2.1, of Wan 2.2 and of Qwen-Image.

    conv_in -> level 0 -> ... -> level L-1 -> mid (block, attention, block) -> norm, silu, conv_out -> quant_conv

A level is `num_res_blocks` residual blocks; all levels but the last end with a downsampling by 2 in space and, where
`time_downsample` says so, in time. Wan 2.2 (`patch_size` 2, `shortcuts`) first folds 2x2 pixels into channels, and adds
to the output of each level the average of its input.

Its normalisation takes each position by itself, and attention each frame. So every output depends on a bounded number
of past frames, its receptive field in time. With r the frames per step of time at a layer, and all convolutions causal:

    conv_in                                      2
    each residual block, two convolutions of 3   4 r    r = 1, 1, 2, 4 at levels 0 to 3 of Wan, 4 in mid
    each downsampling in time, 3 with stride 2   2 r    r = 1, 2
    conv_out                                     2 r    r = 4

    Wan 2.1 and 2.2: 2 + 8 (1 + 1 + 2 + 4) + 2 (1 + 2) + 8 * 4 + 8 = 112

The latent of frames 4j-3 .. 4j depends on frames 4j-112 .. 4j and on no other. A long clip that is cut with a context
of 112 frames is therefore encoded exactly.

The reference feeds 1 + 4 + 4 + ... frames and caches the last two inputs of each convolution. The windows change no
result: the first frame passes each downsampling in time untouched, and after it every pair of frames has the pair's
predecessor as its past, however many frames come at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae import kernels
from vae.blocks import NormalizeChannels, ResnetBlock3D
from vae.causal import Cache, CausalConv3d
from vae.encoder import EncoderCache


class WanAttention(nn.Module):
    """Single-head self-attention over the pixels of each frame, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = NormalizeChannels(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.proj = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        batch, channels, num_frames, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 4, 1).reshape(batch * num_frames, 1, height * width, channels)
        q, k, v = _pointwise(tokens, self.to_qkv).chunk(3, dim=-1)
        h = _pointwise(F.scaled_dot_product_attention(q, k, v), self.proj)
        return x + h.view(batch, num_frames, height, width, channels).permute(0, 4, 1, 2, 3)


class WanLevel(nn.Module):
    """One resolution: residual blocks, then a downsampling in space and perhaps in time, and perhaps a shortcut."""

    def __init__(
        self, chan_in: int, chan_out: int, num_res_blocks: int, *, space: bool, time: bool, shortcut: bool
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(_block(chan_out if j else chan_in, chan_out) for j in range(num_res_blocks))
        self.downsample = nn.Conv2d(chan_out, chan_out, kernel_size=3, stride=2) if space else None
        self.time_conv = CausalConv3d(chan_out, chan_out, (3, 1, 1), "constant", stride=2) if time else None
        self.shortcut = shortcut
        self._factors = (2 if time else 1, 2 if space else 1)
        self._channels = chan_out

    def forward(self, x: Tensor, cache: EncoderCache, name: str, *, overwrite: bool) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W'); `name` is this level's in the cache.

        With `overwrite` the caller no longer needs x.
        """
        kept = grouped_mean(x, *self._factors, self._channels) if self.shortcut else None
        overwrite = overwrite and (kept is None or kept.data_ptr() != x.data_ptr())
        for j, block in enumerate(self.block):
            x = block(x, cache=cache.setdefault(f"{name}.block.{j}", {}), overwrite=overwrite or j > 0)
        if self.downsample is not None:
            x = halve_space(x, self.downsample)
        if self.time_conv is not None:
            x = _halve_time(x, self.time_conv, cache.setdefault(f"{name}.time", {}))
        return x if kept is None else x + kept


class WanMid(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = _block(channels, channels)
        self.attn_1 = WanAttention(channels)
        self.block_2 = _block(channels, channels)


class WanEncoder(nn.Module):
    """(B, in_channels, T, H, W) to moments (B, 2 * z_channels, T', H', W'), T' = 1 + (T-1) / time_compression."""

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        time_downsample: Sequence[bool] = (False, True, True),
        in_channels: int = 3,
        z_channels: int = 16,
        patch_size: int = 1,
        shortcuts: bool = False,
    ) -> None:
        """Build the layers top to bottom.

        Args:
            ch: channels after the first convolution.
            ch_mult: channel multiplier of each level.
            num_res_blocks: residual blocks per level.
            time_downsample: for each level but the last, whether it halves the time too.
            in_channels: channels of the pixels.
            z_channels: latent channels.
            patch_size: side of the squares of pixels that become channels of one position (1, or 2 for Wan 2.2).
            shortcuts: add the average of its input to the output of each level (Wan 2.2).

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__()
        if min(ch, num_res_blocks, in_channels, z_channels, patch_size, *ch_mult) < 1:
            raise ValueError(
                f"sizes must be at least 1, got {ch = }, {ch_mult = }, {num_res_blocks = }, {patch_size = }"
            )
        if len(time_downsample) != len(ch_mult) - 1:
            raise ValueError(f"need time_downsample for {len(ch_mult) - 1} levels, got {tuple(time_downsample)}")
        widths = [ch, *(ch * m for m in ch_mult)]
        self.in_channels = in_channels
        self.z_channels = z_channels
        self.patch_size = patch_size
        self.time_compression = 2 ** sum(time_downsample)
        self.space_compression = patch_size * 2 ** (len(ch_mult) - 1)
        self.reach = _reach(num_res_blocks, time_downsample)
        self.conv_in = CausalConv3d(in_channels * patch_size**2, ch, 3)
        self.down = nn.ModuleList(
            WanLevel(
                widths[i], widths[i + 1], num_res_blocks, space=i < len(ch_mult) - 1, time=time, shortcut=shortcuts
            )
            for i, time in enumerate((*time_downsample, False))
        )
        self.mid = WanMid(widths[-1])
        self.norm_out = NormalizeChannels(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * z_channels, 3)
        self.quant_conv = nn.Conv3d(2 * z_channels, 2 * z_channels, kernel_size=1)
        for module in self.modules():
            if isinstance(module, CausalConv3d):
                module.in_parts = True

    def forward(self, x: Tensor) -> Tensor:
        """Encode a whole clip in one pass.

        Raises:
            ValueError: wrong rank, channels or size, or a T other than 1 + k * time_compression.
        """
        if x.ndim == 5 and x.shape[2] % self.time_compression != 1 % self.time_compression:
            raise ValueError(f"a clip must have 1 + {self.time_compression}k frames, got {x.shape[2]}")
        return self.step(x)[0]

    def step(self, x: Tensor, cache: EncoderCache | None = None) -> tuple[Tensor, EncoderCache]:
        """Encode the next frames of a clip.

        Args:
            x: the next frames: 1 + k * time_compression at the start of a clip, else a multiple of time_compression.
            cache: what the previous step returned; None at the start. It is consumed, as in `Encoder3D.step`. A start
                with a multiple of time_compression is in the middle of a clip: the past is taken as zeros at every
                layer, which is wrong for the `reach` frames that follow and right after them.

        Returns:
            The moments, and the cache for the next step.

        Raises:
            ValueError: wrong rank, channels or size, or a wrong number of frames.
        """
        cache = {} if cache is None else cache
        self._check_input(x, is_start=not cache)
        h = patchify(x, self.patch_size)
        if kernels.is_fast():
            h = h.contiguous(memory_format=torch.channels_last_3d)
        h = self.conv_in.through(h, cache.setdefault("conv_in", {}), "conv")
        for i, level in enumerate(self.down):
            h = level(h, cache, f"down.{i}", overwrite=True)
        h = self.mid.block_1(h, cache=cache.setdefault("mid.block_1", {}), overwrite=True)
        h = self.mid.attn_1(h)
        h = self.mid.block_2(h, cache=cache.setdefault("mid.block_2", {}), overwrite=True)
        h = self.conv_out.through(h, cache.setdefault("conv_out", {}), "conv", norm=self.norm_out)
        return kernels.conv3d(h, self.quant_conv), cache

    def _check_input(self, x: Tensor, *, is_start: bool) -> None:
        if x.ndim != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"input must be (B, {self.in_channels}, T, H, W), got {tuple(x.shape)}")
        if min(x.shape[3:]) < self.space_compression or any(n % self.patch_size for n in x.shape[3:]):
            raise ValueError(
                f"height and width must be at least {self.space_compression} and multiples of {self.patch_size}, got "
                f"{tuple(x.shape)}"
            )
        step = self.time_compression
        if not (x.shape[2] >= 1 and (x.shape[2] % step == 0 or (is_start and x.shape[2] % step == 1))):
            allowed = f"1 + {step}k or {step}k frames at the start" if is_start else f"multiples of {step} frames"
            raise ValueError(f"a step takes {allowed}, got {x.shape[2]}")


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """(B, C, T, H, W) to (B, C*p*p, T, H/p, W/p), p = patch_size: channels in the order (C, column, row) of a patch."""
    if patch_size == 1:
        return x
    batch, channels, num_frames, height, width = x.shape
    p = patch_size
    patches = x.reshape(batch, channels, num_frames, height // p, p, width // p, p).permute(0, 1, 6, 4, 2, 3, 5)
    return patches.reshape(batch, channels * p * p, num_frames, height // p, width // p)


def grouped_mean(x: Tensor, time: int, space: int, channels: int) -> Tensor:
    """(B, C, T, H, W) to (B, channels, T / time, H / space, W / space): the shortcut of a level of Wan 2.2.

    Each block of time * space * space positions becomes channels, in the order (C, time, row, column), and neighbouring
    channels are averaged until `channels` are left. An odd T has a zero frame before it: the start of a clip.

    Raises:
        ValueError: H or W is not a multiple of `space`, or the channels cannot be grouped.
    """
    batch, chan_in, num_frames, height, width = x.shape
    if height % space or width % space or chan_in * time * space**2 % channels:
        raise ValueError(
            f"cannot average {tuple(x.shape)} over {time}x{space}x{space} positions into {channels} channels"
        )
    if time * space == 1 and chan_in == channels:
        return x
    x = F.pad(x, (0, 0, 0, 0, num_frames % time, 0)) if num_frames % time else x
    num_left, group = x.shape[2] // time, chan_in * time * space**2 // channels
    blocks = x.reshape(batch, chan_in, num_left, time, height // space, space, width // space, space)
    if group == space**2:  # a mean over space only: no copy of x
        mean = blocks.mean((5, 7)).permute(0, 1, 3, 2, 4, 5)
        return mean.reshape(batch, channels, num_left, height // space, width // space)
    folded = blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, channels, group, num_left, height // space, -1)
    return folded.mean(2)


def halve_space(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Halve height and width by a convolution of 3x3 with stride 2; zeros stand beyond the right and lower edge.

    float32 on a CPU takes the layout NCHW: oneDNN then sums in shorter chains. No normalisation precedes, so values are
    large, and the channels-last kernel was half of the encoder's whole rounding error (1.3e-6 of 1.7e-6 relative).
    """
    batch, channels, num_frames = x.shape[:3]
    layout = torch.contiguous_format if x.dtype == torch.float32 and x.device.type == "cpu" else torch.channels_last
    frames = x.transpose(1, 2).flatten(0, 1)
    padded = F.pad(frames, (0, 1, 0, 1)).contiguous(memory_format=layout)
    h = F.conv2d(padded, conv.weight.contiguous(memory_format=layout), conv.bias, stride=2)
    return h.view(batch, num_frames, channels, *h.shape[2:]).transpose(1, 2)


def _halve_time(x: Tensor, conv: CausalConv3d, cache: Cache) -> Tensor:
    """Halve the frames: the first frame of a clip stays alone and untouched, and is the past of the next pair."""
    if cache or x.shape[2] % 2 == 0:
        return conv.through(x, cache, "conv")
    first = x[:, :, :1]
    cache["conv"] = first.clone()
    if x.shape[2] == 1:
        return x
    return torch.cat([first, conv.through(x[:, :, 1:], cache, "conv")], dim=2)


def _reach(num_res_blocks: int, time_downsample: Sequence[bool]) -> int:
    """Return how many frames before its last frame a latent depends on."""
    rate, reach = 1, 2
    for halves in (*time_downsample, False):
        reach += num_res_blocks * 4 * rate
        if halves:
            reach += 2 * rate
            rate *= 2
    return reach + (2 * 4 + 2) * rate


def _block(chan_in: int, chan_out: int) -> ResnetBlock3D:
    return ResnetBlock3D(
        in_channels=chan_in, out_channels=chan_out, dropout=0.0, temb_channels=0, norm=NormalizeChannels
    )


def _pointwise(tokens: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a 1x1 convolution to (..., C) tokens."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)
