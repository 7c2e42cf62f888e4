"""VideoVAE: pixels to posterior, one window after the other, and everything else that a job needs from a VAE.

vae = load_vae("tiny")
posterior = vae.encode(pixels)               # uint8 or [-1, 1], (B, 3, T, H, W)
latent = vae.scale(posterior.mode())         # (B, 16, T', H/8, W/8), scaled for diffusion training
pixels = vae.decode(latent)                  # back to (B, 3, T, H, W)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vae import kernels
from vae.checkpoints.diffusers_vae import DiffusersEncoder
from vae.checkpoints.load_pixel_decoder import PixelDecoder
from vae.encoder import Encoder3D, EncoderCache, copy_cache
from vae.errors import CheckpointError
from vae.info import Scaling, VAEInfo
from vae.posterior import DiagonalGaussianDistribution
from vae.shapes import window_lengths
from vae.tiling import Tiling, encode_tiles
from vae.wan import WanEncoder


class VideoVAE:
    """An encoder with its schedule, its normalisation of latents, its description, and on request its decoder."""

    def __init__(
        self,
        encoder: Encoder3D | WanEncoder | DiffusersEncoder,
        info: VAEInfo,
        load_decoder: Callable[[], PixelDecoder] | None = None,
    ) -> None:
        self.encoder = encoder
        self.info = info
        self._load_decoder = load_decoder
        self._decoder: PixelDecoder | None = None

    def normalised(self, scale: Scaling, shift: Scaling) -> VideoVAE:
        """Return this VAE with another normalisation of latents; it shares the networks."""
        return VideoVAE(self.encoder, replace(self.info, scale=scale, shift=shift), self._load_decoder)

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return next(self.encoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device that the encoder is on."""
        return next(self.encoder.parameters()).device

    def encode(self, pixels: Tensor, tiling: Tiling | None = None) -> DiagonalGaussianDistribution:
        """Encode whole clips by the schedule.

        Args:
            pixels: (B, C, T, H, W), uint8 or float in [-1, 1], on any device. The batch size changes float rounding,
                so a job that promises equal bytes passes one clip at a time.
            tiling: encode tile by tile; changes every latent (`vae.tiling`).

        Raises:
            ValueError: wrong rank, channels, size or dtype, or a T that cannot be encoded.
        """
        self._check_pixels(pixels)
        self.info.latent_shape(pixels.shape[2], pixels.shape[3], pixels.shape[4])
        windows = window_lengths(pixels.shape[2], self.info.schedule)
        return DiagonalGaussianDistribution(self.encode_windows(pixels, windows, 0, tiling))

    def encode_windows(
        self, pixels: Tensor, windows: Sequence[int], num_context: int, tiling: Tiling | None = None
    ) -> Tensor:
        """Encode the windows of one chunk and drop the latents of its context.

        Args:
            pixels: (B, C, T, H, W) as in `encode`; T is the sum of `windows`.
            windows: window lengths, context first.
            num_context: how many of the first windows only fill the caches.
            tiling: encode tile by tile.

        Returns:
            Moments (B, 2C', T', H', W') of the windows after the context, in the compute dtype.
        """
        self._check_pixels(pixels)
        if sum(windows) != pixels.shape[2] or min(windows, default=0) < 1 or not 0 <= num_context < len(windows):
            raise ValueError(
                f"windows must add up to the frames and exceed the context, got {tuple(windows)} with {num_context = } "
                f"for {pixels.shape[2]} frames"
            )
        with torch.no_grad(), kernels.workspace():
            if tiling is None:
                return self._encode_windows(pixels, windows, num_context)
            encode = partial(self._encode_windows, windows=windows, num_context=num_context)
            return encode_tiles(encode, pixels, tiling, self.info.space_compression)

    def encode_window(self, pixels: Tensor, cache: EncoderCache | None = None) -> tuple[Tensor, EncoderCache]:
        """Encode the next window of a stream.

        Args:
            pixels: the next frames, as in `encode`.
            cache: what the previous call returned; None at the start of a clip. It is not changed, so a stream can
                continue twice from one state.

        Returns:
            Moments of the window (B, 2C', T', H', W'), and the state after it.
        """
        self._check_pixels(pixels)
        if not self.info.windowed or isinstance(self.encoder, DiffusersEncoder):
            raise ValueError(f"{self.info.name} with schedule {self.info.schedule!r} encodes whole clips only")
        with torch.no_grad(), kernels.workspace():
            return self.encoder.step(self._to_input(pixels), None if cache is None else copy_cache(cache))

    def scale(self, z: Tensor) -> Tensor:
        """Return (z - shift) * scale, the latent for diffusion training. Channels are on axis -4."""
        return (z - self._factors(self.info.shift, z)) * self._factors(self.info.scale, z)

    def unscale(self, z: Tensor) -> Tensor:
        """Undo `scale`."""
        return z / self._factors(self.info.scale, z) + self._factors(self.info.shift, z)

    def decode(self, latent: Tensor) -> Tensor:
        """Decode latents to pixels. The decoder is loaded at the first call; encoding does not need it.

        Args:
            latent: what `scale` gives, (B, C, T', H', W').

        Returns:
            float32 pixels in [-1, 1], (B, 3, T, H, W).

        Raises:
            CheckpointError: the checkpoint has no decoder, or diffusers is not installed.
            ValueError: wrong rank or channels.
        """
        if latent.ndim != 5 or latent.shape[1] != self.info.latent_channels:
            raise ValueError(f"latent must be (B, {self.info.latent_channels}, T', H', W'), got {tuple(latent.shape)}")
        with torch.no_grad():
            return self.decoder()(self.unscale(latent.float())).float().clamp(-1.0, 1.0)

    def decoder(self) -> PixelDecoder:
        """Return the decoder, loaded at the first call, from unscaled latents to pixels. Raises CheckpointError."""
        if self._decoder is None:
            if self._load_decoder is None:
                raise CheckpointError(f"{self.info.name} was built without a decoder: load it with vae.load_vae")
            self._decoder = self._load_decoder()
        return self._decoder

    def selfcheck(self, shape_THW: tuple[int, int, int]) -> float:
        """Encode one window of noise through the fast path and in float32 through the plain path, and compare.

        It takes twice the memory of encoding. `vae.kernels.selfcheck.check`, which encoders run, does not.

        Args:
            shape_THW: frames, height and width of a clip; its longest window is encoded. A VAE that takes certain
                lengths only gets the nearest of them.

        Returns:
            Relative L2 error of the moments. About 1e-6 in float32 and 1e-2 in bfloat16; NaN or inf if either is not
            finite.
        """
        from vae.kernels.selfcheck import whole

        return float(whole(self, shape_THW)[1])

    def _encode_windows(self, pixels: Tensor, windows: Sequence[int], num_context: int) -> Tensor:
        if isinstance(self.encoder, DiffusersEncoder) or self.info.schedule == "whole":
            if len(windows) != 1:
                raise ValueError(f"schedule 'whole' takes one window per clip, got {tuple(windows)}")
            h: Tensor = self.encoder(self._to_input(pixels))
            return h.contiguous()
        cache: EncoderCache = {}
        moments = []
        start = 0
        for i, length in enumerate(windows):
            h, cache = self.encoder.step(self._to_input(pixels[:, :, start : start + length]), cache)
            if i >= num_context:
                moments.append(h)
            start += length
        cache.clear()
        return torch.cat(moments, dim=2).contiguous()

    def _to_input(self, pixels: Tensor) -> Tensor:
        """Move pixels to the device, and scale uint8 to [-1, 1] there, in float32, before the cast.

        uint8 is a quarter of the traffic of float32.
        """
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().div_(127.5).sub_(1.0)
        return pixels.to(self.dtype)

    def _check_pixels(self, pixels: Tensor) -> None:
        if pixels.ndim != 5 or pixels.shape[1] != self.info.in_channels:
            raise ValueError(f"pixels must be (B, {self.info.in_channels}, T, H, W), got {tuple(pixels.shape)}")
        if pixels.dtype != torch.uint8 and not pixels.dtype.is_floating_point:
            raise ValueError(f"pixels must be uint8 in [0, 255] or float in [-1, 1], got {pixels.dtype}")
        if pixels.shape[0] < 1:
            raise ValueError(f"pixels must have at least one clip, got {tuple(pixels.shape)}")
        self.info.check_size(pixels.shape[3], pixels.shape[4])

    def _factors(self, value: Scaling, z: Tensor) -> Tensor:
        factors = torch.tensor(value, dtype=z.dtype, device=z.device)
        if factors.ndim < 2:
            return factors.reshape(-1, 1, 1, 1)
        if z.shape[-3] > factors.shape[1]:
            raise ValueError(
                f"{self.info.name} defines the scaling of {factors.shape[1]} latent frames only, got {z.shape[-3]}"
            )
        return factors[:, : z.shape[-3], None, None]
