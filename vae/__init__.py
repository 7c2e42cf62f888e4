"""The models: causal 3D video encoders, the temporal video decoder, their checkpoints, and VideoVAE over them.

Names are imported when they are first asked for, so that `vae.shapes` and `vae.info` cost a decode worker no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vae.autoencoder import VideoVAE as VideoVAE
    from vae.blocks import AttnBlock2D as AttnBlock2D
    from vae.blocks import DownSample3D as DownSample3D
    from vae.blocks import Normalize3D as Normalize3D
    from vae.blocks import ResnetBlock3D as ResnetBlock3D
    from vae.blocks import Upsample3D as Upsample3D
    from vae.blocks import get_timestep_embedding as get_timestep_embedding
    from vae.causal import CausalConv3d as CausalConv3d
    from vae.decoder import Decoder as Decoder
    from vae.decoder import VideoDecoder as VideoDecoder
    from vae.encoder import Encoder3D as Encoder3D
    from vae.errors import CheckpointError as CheckpointError
    from vae.info import VAEInfo as VAEInfo
    from vae.load import load_vae as load_vae
    from vae.load import save_vae as save_vae
    from vae.load_decoder import load_video_decoder as load_video_decoder
    from vae.posterior import DiagonalGaussianDistribution as DiagonalGaussianDistribution
    from vae.shapes import ChunkSpan as ChunkSpan
    from vae.shapes import Schedule as Schedule
    from vae.shapes import chunk_spans as chunk_spans
    from vae.shapes import window_lengths as window_lengths
    from vae.temporal import AE3DConv as AE3DConv
    from vae.temporal import MemoryEfficientVideoBlock as MemoryEfficientVideoBlock
    from vae.temporal import VideoBlock as VideoBlock
    from vae.temporal import VideoResBlock as VideoResBlock
    from vae.temporal import make_time_attn as make_time_attn
    from vae.tiling import Tiling as Tiling
    from vae.transformer import VideoTransformerBlock as VideoTransformerBlock
    from vae.transformer import timestep_embedding as timestep_embedding

_HOME = {
    "VideoVAE": "autoencoder",
    "AttnBlock2D": "blocks",
    "DownSample3D": "blocks",
    "Normalize3D": "blocks",
    "ResnetBlock3D": "blocks",
    "Upsample3D": "blocks",
    "get_timestep_embedding": "blocks",
    "CausalConv3d": "causal",
    "Decoder": "decoder",
    "VideoDecoder": "decoder",
    "Encoder3D": "encoder",
    "CheckpointError": "errors",
    "VAEInfo": "info",
    "load_vae": "load",
    "save_vae": "load",
    "load_video_decoder": "load_decoder",
    "DiagonalGaussianDistribution": "posterior",
    "ChunkSpan": "shapes",
    "Schedule": "shapes",
    "chunk_spans": "shapes",
    "window_lengths": "shapes",
    "Tiling": "tiling",
    "AE3DConv": "temporal",
    "MemoryEfficientVideoBlock": "temporal",
    "VideoBlock": "temporal",
    "VideoResBlock": "temporal",
    "VideoTransformerBlock": "transformer",
    "make_time_attn": "temporal",
    "timestep_embedding": "transformer",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vae' has no attribute {name!r}")
    return getattr(import_module(f"vae.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
