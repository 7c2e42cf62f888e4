"""The models: causal 3D video encoders, the temporal video decoder, their checkpoints, and VideoVAE on top of them.

Each name is imported on first use, so that a decode worker can import `vae.shapes` and `vae.info` without torch.
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
    from vae.checkpoints.load import load_vae as load_vae
    from vae.checkpoints.load import save_vae as save_vae
    from vae.checkpoints.load_decoder import load_video_decoder as load_video_decoder
    from vae.encoder import Encoder3D as Encoder3D
    from vae.errors import CheckpointError as CheckpointError
    from vae.info import VAEInfo as VAEInfo
    from vae.posterior import DiagonalGaussianDistribution as DiagonalGaussianDistribution
    from vae.shapes import ChunkSpan as ChunkSpan
    from vae.shapes import Schedule as Schedule
    from vae.shapes import chunk_spans as chunk_spans
    from vae.shapes import window_lengths as window_lengths
    from vae.temporal_decoder.decoder import Decoder as Decoder
    from vae.temporal_decoder.decoder import VideoDecoder as VideoDecoder
    from vae.temporal_decoder.temporal import AE3DConv as AE3DConv
    from vae.temporal_decoder.temporal import MemoryEfficientVideoBlock as MemoryEfficientVideoBlock
    from vae.temporal_decoder.temporal import VideoBlock as VideoBlock
    from vae.temporal_decoder.temporal import VideoResBlock as VideoResBlock
    from vae.temporal_decoder.temporal import make_time_attn as make_time_attn
    from vae.temporal_decoder.transformer import VideoTransformerBlock as VideoTransformerBlock
    from vae.temporal_decoder.transformer import timestep_embedding as timestep_embedding
    from vae.tiling import Tiling as Tiling

_HOME = {
    "VideoVAE": "autoencoder",
    "AttnBlock2D": "blocks",
    "DownSample3D": "blocks",
    "Normalize3D": "blocks",
    "ResnetBlock3D": "blocks",
    "Upsample3D": "blocks",
    "get_timestep_embedding": "blocks",
    "CausalConv3d": "causal",
    "Decoder": "temporal_decoder.decoder",
    "VideoDecoder": "temporal_decoder.decoder",
    "Encoder3D": "encoder",
    "CheckpointError": "errors",
    "VAEInfo": "info",
    "load_vae": "checkpoints.load",
    "save_vae": "checkpoints.load",
    "load_video_decoder": "checkpoints.load_decoder",
    "DiagonalGaussianDistribution": "posterior",
    "ChunkSpan": "shapes",
    "Schedule": "shapes",
    "chunk_spans": "shapes",
    "window_lengths": "shapes",
    "Tiling": "tiling",
    "AE3DConv": "temporal_decoder.temporal",
    "MemoryEfficientVideoBlock": "temporal_decoder.temporal",
    "VideoBlock": "temporal_decoder.temporal",
    "VideoResBlock": "temporal_decoder.temporal",
    "VideoTransformerBlock": "temporal_decoder.transformer",
    "make_time_attn": "temporal_decoder.temporal",
    "timestep_embedding": "temporal_decoder.transformer",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vae' has no attribute {name!r}")
    return getattr(import_module(f"vae.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
