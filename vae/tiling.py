"""Spatial tiling as in diffusers' AutoencoderKLCogVideoX: overlapping tiles, latents blended by linear ramps.

Tiling bounds the memory of a window by the tile size. It changes EVERY latent, not only those at seams (by 0.8
relative, with random weights), because each tile is normalised by itself. The latents that CogVideo's own fine-tuning
code caches are tiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """Size and overlap of tiles."""

    height: int
    """Height of a tile, in pixels."""
    width: int
    """Width of a tile, in pixels."""
    overlap_height: float = 1 / 6
    """Share of a tile's height that the tile below covers too (diffusers' default)."""
    overlap_width: float = 1 / 5
    """Share of a tile's width that the tile to the right covers too (diffusers' default)."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"tile height and width must be at least 1, got {self.height}x{self.width}")
        if not (0 <= self.overlap_height < 1 and 0 <= self.overlap_width < 1):
            raise ValueError(f"overlaps must be in [0, 1), got {self.overlap_height} and {self.overlap_width}")


def encode_tiles(encode: Callable[[Tensor], Tensor], pixels: Tensor, tiling: Tiling, space_compression: int) -> Tensor:
    """Encode (..., H, W) tile by tile; pixels that fit into one tile are encoded as they are.

    Args:
        encode: turns the pixels of a tile into moments; each tile is encoded as a separate clip, with its own caches.
        pixels: (B, C, T, H, W).
        tiling: size and overlap of the tiles.
        space_compression: pixels per latent cell.

    Raises:
        ValueError: tiles, or steps between them, that are not multiples of the compression.
    """
    height, width = pixels.shape[-2:]
    if height <= tiling.height and width <= tiling.width:
        return encode(pixels)
    steps = int(tiling.height * (1 - tiling.overlap_height)), int(tiling.width * (1 - tiling.overlap_width))
    if any(n % space_compression for n in (tiling.height, tiling.width, *steps)):
        raise ValueError(
            f"tiles of {tiling.height}x{tiling.width} pixels in steps of {steps[0]}x{steps[1]} do not fall on the grid "
            f"of {space_compression}-pixel latent cells"
        )
    cells = tiling.height // space_compression, tiling.width // space_compression
    blend = int(cells[0] * tiling.overlap_height), int(cells[1] * tiling.overlap_width)
    above: list[Tensor] = []
    rows = []
    for top in range(0, height, steps[0]):
        tiles: list[Tensor] = []
        for left in range(0, width, steps[1]):
            tile = encode(pixels[..., top : top + tiling.height, left : left + tiling.width])
            if above:
                _blend(above[len(tiles)], tile, blend[0], axis=-2)
            if tiles:
                _blend(tiles[-1], tile, blend[1], axis=-1)
            tiles.append(tile)
        rows.append(torch.cat([tile[..., : cells[0] - blend[0], : cells[1] - blend[1]] for tile in tiles], dim=-1))
        above = tiles
    return torch.cat(rows, dim=-2)


def _blend(before: Tensor, tile: Tensor, extent: int, axis: int) -> None:
    """Fade from the end of `before` into the start of `tile`, in place, because later tiles blend with the result."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    shape = [1] * tile.ndim
    shape[axis] = extent
    ramp = (torch.arange(extent, dtype=tile.dtype, device=tile.device) / max(extent, 1)).view(shape)
    start = tile.narrow(axis, 0, extent)
    end = before.narrow(axis, before.shape[axis] - extent, extent)
    start.copy_(end * (1 - ramp) + start * ramp)
