"""VAEInfo: everything that a job must know about a VAE without running it. No torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vae import shapes

Scaling = float | tuple[float, ...] | tuple[tuple[float, ...], ...]
"""One number, one per latent channel, or one per latent channel and latent frame (Cosmos)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEInfo:
    """The description of a VAE and of the latents that it makes. `to_json` gives it as JSON types."""

    name: str
    """Class of the VAE as its checkpoint names it, or `tiny`."""
    config: dict[str, Any]
    """Arguments that rebuild the network."""
    weights_sha256: str
    """Digest of the encoder's tensors (name, dtype, shape, bytes); it does not depend on file format or path."""
    in_channels: int
    """Channels of the pixels."""
    latent_channels: int
    """Channels of the latent."""
    time_compression: int
    """Frames per latent frame, except the first latent frame, which represents one frame."""
    space_compression: int
    """Pixels per latent cell in height and in width."""
    scale: Scaling
    """Training latents are (z - shift) * scale."""
    shift: Scaling
    """See scale."""
    schedule: shapes.Schedule
    """How a clip is cut into windows."""
    windowed: bool
    """Whether a long clip may be cut into chunks on the window grid."""
    only_accepted_lengths: bool = False
    """Whether the VAE can encode only the lengths that `accepts` allows."""
    exact_context: int | None = None
    """Windows before a chunk that its latents depend on; None if they depend on the whole clip before it."""
    time_tiling: tuple[int, int] | None = None
    """Frames of a tile and from tile to tile, where the VAE's own code encodes a longer clip in tiles of time that it
    blends (HunyuanVideo); else None."""

    exact_statistics: bool = False
    """Whether an output computes the norms of float32 data on a CPU from exact sums (`vae.kernels.statistics`). Set in
    the Specs of `--dtype float32`; an output without it goes on with the sums of before."""

    @property
    def frame_rule(self) -> str:
        """The accepted frame counts as text, for k = 0, 1, 2, ..."""
        return f"1 + {self.time_compression}k"

    def accepts(self, num_frames: int) -> bool:
        """Whether a job takes clips of this many frames."""
        return shapes.accepts_frames(num_frames, self.time_compression)

    def nearest(self, num_frames: int) -> tuple[int | None, int]:
        """Nearest accepted frame counts (at or below, at or above); below is None when there is none."""
        return shapes.nearest_frames(num_frames, self.time_compression)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the shape (C, T', H', W') of a clip's latent, without running the VAE.

        Raises:
            ValueError: a size that is not a multiple of the compression, or a T that cannot be encoded.
        """
        self.check_size(height, width)
        if self.only_accepted_lengths:
            if not self.accepts(num_frames):
                raise ValueError(f"{self.name} takes {self.frame_rule} frames, got {num_frames}")
            num_latent = 1 + (num_frames - 1) // self.time_compression
            return self.latent_channels, num_latent, height // self.space_compression, width // self.space_compression
        num_latent = shapes.latent_frames(num_frames, time_compression=self.time_compression, schedule=self.schedule)
        return self.latent_channels, num_latent, height // self.space_compression, width // self.space_compression

    def spans(self, num_frames: int, *, chunk_windows: int, context: int | None) -> tuple[shapes.ChunkSpan, ...]:
        """Cut a clip into chunks of at most `chunk_windows` windows; see `vae.shapes.chunk_spans`.

        Args:
            num_frames: frames of the clip.
            chunk_windows: body windows per chunk.
            context: windows of context; None never cuts. No effect where `exact_context` is known: it is used.
        """
        if not self.windowed:
            context = None
        elif self.exact_context is not None:
            context = self.exact_context
        return shapes.chunk_spans(num_frames, chunk_windows=chunk_windows, context=context, schedule=self.schedule)

    def check_size(self, height: int, width: int) -> None:
        """Reject sizes whose last rows or columns would be dropped silently.

        Raises:
            ValueError: height or width is not a positive multiple of `space_compression`.
        """
        step = self.space_compression
        if height < step or width < step or height % step or width % step:
            raise ValueError(f"height and width must be positive multiples of {step}, got {height}x{width}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types, in field order, without those of `_ABSENT` that have their default."""
        fields = asdict(self).items()
        return {name: _lists(value) for name, value in fields if name not in _ABSENT or value != _ABSENT[name]}


_ABSENT: dict[str, Any] = {"exact_context": None, "time_tiling": None, "exact_statistics": False}
"""Fields that came later, and their defaults: left out, so that the Spec of an older output keeps its bytes."""


def _lists(value: Any) -> Any:
    return [_lists(inner) for inner in value] if isinstance(value, tuple) else value
