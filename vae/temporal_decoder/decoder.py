"""Decoder: the image decoder of the latent diffusion family. VideoDecoder: the same with blocks that mix frames.

    conv_in -> mid (block, attention, block) -> level L-1 -> ... -> level 0 -> norm, silu, conv_out

A level is num_res_blocks + 1 residual blocks, each followed by attention if the nominal resolution is in
`attn_resolutions`. All levels but level 0, the finest, end with an upsampling by 2. VideoDecoder is for image-to-video
autoencoders such as Stable Video Diffusion's; it does not decode CogVideoX latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae.temporal_decoder.image_blocks import AttnType, FrameConv2d, ResnetBlock, Upsample, make_attn, normalize
from vae.temporal_decoder.temporal import AE3DConv, KernelSize, MergeStrategy, VideoResBlock, make_time_attn

TimeMode = Literal["all", "conv-only", "attn-only"]
"""Which parts mix frames: residual blocks and the last convolution, attention, or both."""


class DecoderLevel(nn.Module):
    """One resolution: residual blocks, attention (none, or one per block), then an optional upsampling."""

    def __init__(self, block: list[nn.Module], attn: list[nn.Module], upsample: Upsample | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(block)
        self.attn = nn.ModuleList(attn)
        self.upsample = upsample


class DecoderMid(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, block_1: nn.Module, attn_1: nn.Module, block_2: nn.Module) -> None:
        super().__init__()
        self.block_1 = block_1
        self.attn_1 = attn_1
        self.block_2 = block_2


class Decoder(nn.Module):
    """(N, z_channels, h, w) to (N, out_ch, h * 2**(L-1), w * 2**(L-1)), each frame separately."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        use_linear_attn: bool = False,
        attn_type: AttnType = "vanilla",
        double_z: bool = True,  # noqa: ARG002
    ) -> None:
        """Build the layers top to bottom.

        Args:
            ch: channels of level 0 before its multiplier.
            out_ch: channels of the output.
            ch_mult: channel multiplier of each level.
            num_res_blocks: residual blocks per level, minus one.
            attn_resolutions: nominal resolutions whose blocks are followed by attention.
            dropout: in the residual blocks, when training.
            resamp_with_conv: a convolution after each upsampling.
            in_channels: channels of the encoder's input; kept as an attribute.
            resolution: nominal size of the output; decides which levels have attention.
            z_channels: latent channels.
            give_pre_end: return the input of the last norm instead of the output.
            tanh_out: apply tanh at the end.
            use_linear_attn: not implemented; must be False.
            attn_type: see AttnType.
            double_z: an argument of the encoder; no effect.

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__()
        if use_linear_attn:
            raise ValueError("use_linear_attn=True is not implemented: linear attention fails in the reference as well")
        if not ch_mult or num_res_blocks < 0:
            raise ValueError(f"need at least one level and no negative blocks, got {ch_mult = }, {num_res_blocks = }")
        make_attn_block, make_block, make_conv = self._make_attn(), self._make_resblock(), self._make_conv()
        num_levels = len(ch_mult)
        self.in_channels = in_channels
        self.give_pre_end = give_pre_end
        self.tanh_out = tanh_out
        block_in = ch * ch_mult[-1]
        curr_res = resolution // 2 ** (num_levels - 1)
        self.z_shape = (1, z_channels, curr_res, curr_res)

        def block(channels: int) -> nn.Module:
            return make_block(in_channels=block_in, out_channels=channels, temb_channels=0, dropout=dropout)

        self.conv_in = nn.Conv2d(z_channels, block_in, kernel_size=3, padding=1)
        self.mid = DecoderMid(block(block_in), make_attn_block(block_in, attn_type), block(block_in))
        levels: list[DecoderLevel] = []
        for i in reversed(range(num_levels)):
            blocks, attentions = [], []
            for _ in range(num_res_blocks + 1):
                blocks.append(block(ch * ch_mult[i]))
                block_in = ch * ch_mult[i]
                if curr_res in attn_resolutions:
                    attentions.append(make_attn_block(block_in, attn_type))
            levels.insert(0, DecoderLevel(blocks, attentions, Upsample(block_in, resamp_with_conv) if i else None))
            curr_res *= 2
        self.up = nn.ModuleList(levels)
        self.norm_out = normalize(block_in)
        self.conv_out = make_conv(block_in, out_ch, kernel_size=3, stride=1, padding=1)

    def _make_attn(self) -> Callable[..., nn.Module]:
        """Factory of attention: (channels, attn_type)."""
        return make_attn

    def _make_resblock(self) -> Callable[..., nn.Module]:
        """Factory of residual blocks: (in_channels=, out_channels=, temb_channels=, dropout=)."""
        return ResnetBlock

    def _make_conv(self) -> Callable[..., nn.Module]:
        """Factory of the last convolution: (in, out, kernel_size=, stride=, padding=)."""
        return FrameConv2d

    def get_last_layer(self) -> Tensor:
        """Weight of the last layer, for losses that balance on its gradient."""
        weight = self.conv_out.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, z: Tensor, timesteps: int | None = None, skip_video: bool = False) -> Tensor:
        """Decode.

        Args:
            z: (B*T, z_channels, h, w), frames fastest.
            timesteps: T; the blocks that mix frames need it.
            skip_video: skip the temporal part of these blocks.
        """
        if z.ndim != 4 or z.shape[1] != self.z_shape[1]:
            raise ValueError(f"z must be (B*T, {self.z_shape[1]}, h, w), got {tuple(z.shape)}")
        h: Tensor = self.conv_in(z)
        h = self.mid.block_1(h, None, timesteps=timesteps, skip_video=skip_video)
        h = self.mid.attn_1(h, timesteps=timesteps, skip_video=skip_video)
        h = self.mid.block_2(h, None, timesteps=timesteps, skip_video=skip_video)
        for level in reversed(self.up):
            assert isinstance(level, DecoderLevel)
            for j, block in enumerate(level.block):
                h = block(h, None, timesteps=timesteps, skip_video=skip_video)
                if level.attn:
                    h = level.attn[j](h, timesteps=timesteps, skip_video=skip_video)
            if level.upsample is not None:
                h = level.upsample(h)
        if self.give_pre_end:
            return h
        h = self.conv_out(F.silu(self.norm_out(h)), timesteps=timesteps, skip_video=skip_video)
        return torch.tanh(h) if self.tanh_out else h


class VideoDecoder(Decoder):
    """The decoder with blocks that mix frames, by `time_mode`. Clips are decoded whole: nothing here is causal.

    | time_mode | residual blocks | attention  | last convolution |
    | all       | VideoResBlock   | VideoBlock | AE3DConv         |
    | conv-only | VideoResBlock   | AttnBlock  | AE3DConv         |
    | attn-only | ResnetBlock     | VideoBlock | plain            |

    `alpha` goes to both kinds of block, although it has opposite meanings in them: see `vae.temporal_decoder.temporal`.
    """

    def __init__(
        self,
        *,
        video_kernel_size: KernelSize = 3,
        alpha: float = 0.0,
        merge_strategy: MergeStrategy = "learned",
        time_mode: TimeMode = "conv-only",
        timesteps: int | None = None,
        **image_arguments: Any,
    ) -> None:
        """Build a Decoder with temporal blocks.

        Args:
            video_kernel_size: kernel size of the 3-D convolutions.
            alpha: initial blend factor of every block.
            merge_strategy: `fixed` or `learned`, see `vae.temporal_decoder.temporal`.
            time_mode: see TimeMode.
            timesteps: forward's default.
            image_arguments: the arguments of Decoder.
        """
        if time_mode not in get_args(TimeMode):
            raise ValueError(f"time_mode must be one of {', '.join(get_args(TimeMode))}, got {time_mode!r}")
        self.video_kernel_size = video_kernel_size
        self.alpha = alpha
        self.merge_strategy = merge_strategy
        self.time_mode = time_mode
        self.timesteps = timesteps
        super().__init__(**image_arguments)

    def _make_attn(self) -> Callable[..., nn.Module]:
        if self.time_mode == "conv-only":
            return make_attn
        return partial(make_time_attn, alpha=self.alpha, merge_strategy=self.merge_strategy)

    def _make_resblock(self) -> Callable[..., nn.Module]:
        if self.time_mode == "attn-only":
            return ResnetBlock
        return partial(
            VideoResBlock,
            video_kernel_size=self.video_kernel_size,
            alpha=self.alpha,
            merge_strategy=self.merge_strategy,
        )

    def _make_conv(self) -> Callable[..., nn.Module]:
        if self.time_mode == "attn-only":
            return FrameConv2d
        return partial(AE3DConv, video_kernel_size=self.video_kernel_size)

    def get_last_layer(self, skip_time_mix: bool = False) -> Tensor:
        """Return the weight of the last layer: of the 3-D convolution, or of the 2-D one if there is no other."""
        if skip_time_mix or not isinstance(self.conv_out, AE3DConv):
            return super().get_last_layer()
        return self.conv_out.time_mix_conv.weight

    def forward(self, z: Tensor, timesteps: int | None = None, skip_video: bool = False) -> Tensor:
        """Decode whole clips; see Decoder.forward.

        Raises:
            ValueError: neither this call nor the constructor gives timesteps, and skip_video is False.
        """
        return super().forward(z, self.timesteps if timesteps is None else timesteps, skip_video)
