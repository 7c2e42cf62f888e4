"""ImportJob: what is imported, and what the user knows about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pipeline.errors import ConfigError
from pipeline.sources.latents import Origin


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportJob:
    """Latents that were made elsewhere."""

    origin: Annotated[Origin, tyro.conf.arg(name="from")]
    """What the files are. fastvideo: its Parquet files. pt: torch files of one clip each, a tensor [C, T, H, W] or a
    dict with one."""
    source: str
    """The folder or URL with the files."""
    output: str
    """Where the output goes: a path or URL. Run the same command again to resume, or after the source has grown."""
    key: str = ""
    """The name of the latent in a dict of `pt`. Default: latent, latents or video_latents."""
    vae: str = ""
    """The checkpoint that made the latents, as for encode. Default: only what the next four options say of it."""
    vae_name: str = "unknown"
    """The class of the VAE, such as AutoencoderKLWan, where its checkpoint is not at hand. Exports go by it."""
    time_compression: int = 4
    """Frames per latent frame, except the first."""
    space_compression: int = 8
    """Pixels per latent cell, in height and in width."""
    scale: str | None = None
    """Training latents are (z - shift) * scale: one number, or one for each channel with commas between. Default: the
    checkpoint's, or 1."""
    shift: str | None = None
    """See scale. Default: the checkpoint's, or 0."""
    raw: bool = False
    """The files hold what the VAE gave, so scale and shift are applied. Without it they hold scaled latents. Those of
    fastvideo are always raw."""
    fps: str | None = None
    """Frames per second of the encoded frames. Default: what the first file says."""
    buckets: tuple[str, ...] = ()
    """The shapes of the clips in pixels, such as 49x480x720. Default: that of the first. Others are rejected."""
    posterior: Literal["mean", "sample"] = "mean"
    """What the latents are."""
    store_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Type of the stored latents. Default: that of the first."""
    shard_size: int = 64
    """Latents in a shard."""

    def __post_init__(self) -> None:
        for name in ("time_compression", "space_compression", "shard_size"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")

    @property
    def is_raw(self) -> bool:
        """Whether the files hold what the VAE gave."""
        return self.raw or self.origin == "fastvideo"
