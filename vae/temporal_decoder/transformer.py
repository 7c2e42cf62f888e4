"""VideoBlock's transformer across frames, its embedding of the frame index, and the reshape of rows to clips and back.

Rows are B*T, frames fastest.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Return the sinusoidal embedding of VideoBlock: (N,) to (N, dim) float32, cosines first.

    Frequencies are exp(-ln(max_period) * i / half); an odd dim ends with a column of zeros. `get_timestep_embedding` is
    a different embedding.
    """
    half = dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    # exp in float64: in float32 it differs by a bit between vector units, which is 3e-5 of a sine at timestep 1000.
    angles = timesteps.float()[:, None] * exponent.double().exp().float()[None]
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


class GEGLU(nn.Module):
    """value * gelu(gate), both from one projection; gelu is exact (erf)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner_dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = torch.chunk(self.proj(x), 2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU with four times the width, then a projection back to the width."""

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
    """Attention across frames, separately for every position.

    `attn2` is a second self-attention. In the original class it is cross-attention to a context; this model has none.
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
        """Build the block; with `checkpoint` the backward pass recomputes activations, which saves memory."""
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
        check_rows(num_rows, timesteps)
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


def to_clips(x: Tensor, timesteps: int | None) -> Tensor:
    """(B*T, C, H, W) to (B, C, T, H, W).

    Raises:
        ValueError: timesteps is None, or does not divide the rows.
    """
    num_frames = check_rows(x.shape[0], timesteps)
    return x.reshape(-1, num_frames, *x.shape[1:]).transpose(1, 2)


def to_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) to (B*T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def check_rows(num_rows: int, timesteps: int | None) -> int:
    """Return the frames per clip, or raise ValueError if they are missing or do not divide the rows."""
    if timesteps is None:
        raise ValueError("timesteps (frames per clip) must be given, or skip_video=True")
    if timesteps < 1 or num_rows % timesteps:
        raise ValueError(f"timesteps must divide the {num_rows} rows (B*T), got {timesteps}")
    return timesteps
