"""CausalConv3d: the only module that pads in time and defines the cache of a stream.

Layout of every tensor: (B, C, T, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vae import kernels
from vae.kernels.pieces import frames_at_a_time, joined

PadMode = Literal["constant", "first", "reflect"]
"""The padding before a clip's first frame. constant: zeros. first: copies of frame 0. reflect: frames 1, 2, ...
mirrored; if the clip is too short, the frames furthest in the past are zeros."""


Cache = dict[str, Tensor]
"""Caches of several convolutions by name, for `CausalConv3d.through`. A stream starts with {}."""


class CausalConv3d(nn.Module):
    """A convolution whose output frame t depends on no input frame after t (after s*t + s - 1 with stride s).

    `forward` takes a whole clip. `step` takes a clip in pieces and carries the last frames of its padded input from one
    piece to the next, so that the joined outputs of the pieces are the output of the whole clip:

        kernel 3, pad "first":  [a a|a b c d e] -> 5 outputs
        the same as             [a a|a b c] -> 3, cache [b c];  [b c|d e] -> 2, cache [d e]

    Height and width are padded with zeros on both sides. With `norm`, the convolution reads silu(norm(x)) instead of x;
    the activation is written directly into the padded buffer, which saves a copy.
    """

    def __init__(
        self,
        chan_in: int,
        chan_out: int,
        kernel_size: int | Sequence[int],
        pad_mode: PadMode = "constant",
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        groups: int = 1,
    ) -> None:
        """Build the convolution `conv`; `stride` and `dilation` act on time only, as in the reference.

        Raises:
            ValueError: an even kernel in height or width, a wrong number of kernel sizes, or an unknown pad mode.
        """
        super().__init__()
        kernel = (kernel_size,) * 3 if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(kernel) != 3 or min(kernel) < 1:
            raise ValueError(f"kernel_size must be a positive int or three of them (time, height, width), got {kernel}")
        if kernel[1] % 2 == 0 or kernel[2] % 2 == 0:
            raise ValueError(f"kernel height and width must be odd, got {kernel[1:]}")
        if pad_mode not in get_args(PadMode):
            raise ValueError(f"pad_mode must be one of {', '.join(get_args(PadMode))}, got {pad_mode!r}")
        if stride < 1 or dilation < 1:
            raise ValueError(f"stride and dilation must be at least 1, got {stride} and {dilation}")
        self.pad_mode = pad_mode
        self.in_parts = False  # see kernels.conv3d
        self.stride = stride
        self.reach = dilation * (kernel[0] - 1)
        # A temporal kernel of 1 with a stride would give a negative pad, which crops instead of padding.
        self.time_pad = max(self.reach + 1 - stride, 0)
        self.conv = nn.Conv3d(
            chan_in,
            chan_out,
            kernel,
            stride=(stride, 1, 1),
            dilation=(dilation, 1, 1),
            padding=(0, kernel[1] // 2, kernel[2] // 2),
            bias=bias,
            groups=groups,
        )

    def forward(self, x: Tensor, *, norm: kernels.Norm | None = None, residual: Tensor | None = None) -> Tensor:
        """Convolve a whole clip: T frames to T (stride 1) or (T + time_pad - reach - 1) // stride + 1.

        Raises:
            ValueError: wrong rank or channels, or too few frames for one output.
        """
        if (length := self.frames_at_a_time(x)) < x.shape[2]:
            return self._step_in_pieces(x, None, norm, residual, length)[0]
        return kernels.conv3d(self._padded(x, None, norm), self.conv, residual, in_parts=self.in_parts)

    def step(
        self,
        x: Tensor,
        cache: Tensor | None = None,
        *,
        norm: kernels.Norm | None = None,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Convolve the next piece of a clip.

        Args:
            x: the next frames.
            cache: what the previous step returned; None at the start of the clip.
            norm: if given, the convolution reads silu(norm(x)).
            residual: added to the output; without gradients the sum may be written into its memory.

        Returns:
            The output frames, and the cache for the next step (a copy that shares no memory with x).

        Raises:
            ValueError: as `forward`, or the kernel is shorter than its stride and the piece is not a multiple of the
                stride.
        """
        if (length := self.frames_at_a_time(x)) < x.shape[2]:
            return self._step_in_pieces(x, cache, norm, residual, length)
        padded = self._padded(x, cache, norm)
        kept = self.tail(padded)
        return kernels.conv3d(padded, self.conv, residual, in_parts=self.in_parts), kept

    def through(
        self,
        x: Tensor,
        cache: Cache | None,
        name: str,
        *,
        norm: kernels.Norm | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Call `step` with its state under `name` in `cache`, or `forward` if `cache` is None.

        The old entry is removed before the convolution runs and the new one is stored after it, so that the two never
        take memory at the same time.
        """
        if cache is None:
            return self.forward(x, norm=norm, residual=residual)
        y, cache[name] = self.step(x, cache.pop(name, None), norm=norm, residual=residual)
        return y

    def frames_at_a_time(self, x: Tensor) -> int:
        """Return how many frames of x are convolved at once: all, unless tensors are too large (`kernels.pieces`).

        A piece holds more frames than the padding before a clip may repeat. With a stride nothing is cut.
        """
        if x.ndim != 5 or x.shape[1] != self.conv.in_channels:
            raise ValueError(f"input must be (B, {self.conv.in_channels}, T, H, W), got {tuple(x.shape)}")
        if self.stride > 1:
            return x.shape[2]
        return frames_at_a_time(x, self.conv.out_channels, extra=self.reach, least=self.time_pad + 1)

    def _step_in_pieces(
        self, x: Tensor, past: Tensor | None, norm: kernels.Norm | None, residual: Tensor | None, length: int
    ) -> tuple[Tensor, Tensor]:
        """Convolve `length` frames at a time, after a norm over all of them."""
        if norm is not None:
            out = torch.empty_like(x, memory_format=torch.channels_last_3d) if kernels.is_fast() else None
            x = kernels.norm_silu(x, norm, out)
        state = [past]

        def convolved() -> Iterator[Tensor]:
            for start in range(0, x.shape[2], length):
                rest = None if residual is None else residual[:, :, start : start + length]
                y, state[0] = self.step(x[:, :, start : start + length], state[0], residual=rest)
                yield y

        y = joined(convolved(), x.shape[2])
        assert state[0] is not None
        return y, state[0]

    def tail(self, padded: Tensor) -> Tensor:
        """Return a copy of the frames of a padded input that the next piece needs again.

        Raises:
            ValueError: the kernel is shorter than its stride and the piece is not a multiple of the stride.
        """
        num_outputs = (padded.shape[2] - self.reach - 1) // self.stride + 1
        if num_outputs * self.stride > padded.shape[2]:
            raise ValueError(
                f"a stride of {self.stride} steps over the end of {padded.shape[2]} frames; the kernel spans only "
                f"{self.reach + 1}, so pieces must be multiples of the stride"
            )
        return padded[:, :, num_outputs * self.stride :].clone()

    def fill(self, x: Tensor, past: Tensor | None, write: Callable[[Tensor], object], channels: int = 0) -> Tensor:
        """Return the convolution's input as a shared buffer: the past frames, then what `write` puts into the rest.

        Args:
            x: gives the shape, dtype and device of the rest.
            past: the previous `tail`; None at the start of the clip.
            write: gets the part of the buffer that has x's shape.
            channels: of the buffer, if more than x has; the added ones are zeros.
        """
        num_past = self.time_pad if past is None else past.shape[2]
        batch, real, num_frames, height, width = x.shape
        padded = kernels.buffer("padded", (batch, max(real, channels), num_past + num_frames, height, width), x)
        if channels > real:
            padded.zero_()
        body = padded[:, :real, num_past:]
        write(body)
        padded[:, :real, :num_past] = self._start(body) if past is None else past
        return padded

    def _padded(self, x: Tensor, past: Tensor | None, norm: kernels.Norm | None) -> Tensor:
        """Return the convolution's input: the past frames, then x or silu(norm(x))."""
        num_past = self.time_pad if past is None else past.shape[2]
        if x.shape[2] + num_past <= self.reach:
            raise ValueError(
                f"{x.shape[2]} frames after {num_past} of the past are too few: the kernel spans {self.reach + 1}"
            )
        if not kernels.is_fast():
            body = x if norm is None else kernels.norm_silu(x, norm)
            return torch.cat([self._start(body) if past is None else past, body], dim=2)
        if num_past == 0:
            return x if norm is None else kernels.norm_silu(x, norm)
        if norm is None:
            return self.fill(x, past, lambda body: body.copy_(x))
        return self.fill(x, past, lambda body: kernels.norm_silu(x, norm, out=body))

    def _start(self, body: Tensor) -> Tensor:
        """Return the `time_pad` frames of padding before the first frame of a clip."""
        if self.pad_mode == "first":
            return body[:, :, :1].expand(-1, -1, self.time_pad, -1, -1)
        batch, channels, _, height, width = body.shape
        if self.pad_mode == "constant":
            return body.new_zeros(batch, channels, self.time_pad, height, width)
        mirrored = body[:, :, 1 : 1 + self.time_pad].flip(2)
        missing = body.new_zeros(batch, channels, self.time_pad - mirrored.shape[2], height, width)
        return torch.cat([missing, mirrored], dim=2)
