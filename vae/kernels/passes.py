"""Triton kernels over channels-last memory: each one pass. Launched by `vae.kernels.cuda` only.

A sample is a matrix of `num_rows` pixels by `channels`, dense, row after row; samples lie `..._apart` rows apart.
Sums are in float32, joins of blocks in float64. No kernel uses atomics and no block size is tuned at run time, so the
order of every sum is fixed by the shape. Indices are 64 bits wide: level 0 of a 49x480x720 clip has 2.2e9 elements.

Counts of rows and of blocks are not specialised: Triton would compile a kernel once for those that are 1, once for
multiples of 16, and once for others. Samples lie whole rows apart, so that an address is a multiple of `channels`,
which is specialised.
"""

# Triton reads the source of a kernel; its annotations are of the compiler, not of mypy.
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _merge(count, mean, spread, tile, rows_inside, inside):
    """Merge the statistics of a tile (rows, channels) into running ones, per channel, by Chan's formula."""
    num = tl.sum(rows_inside.to(tl.float32))
    tile_mean = tl.sum(tile, axis=0) / tl.maximum(num, 1.0)
    away = tl.where(inside, tile - tile_mean[None, :], 0.0)
    gap = tile_mean - mean
    total = tl.maximum(count + num, 1.0)
    mean += gap * (num / total)
    spread += tl.sum(away * away, axis=0) + gap * gap * (count * num / total)
    return count + num, mean, spread


@triton.jit(do_not_specialize=["num_rows", "x_apart", "block_rows"])
def statistics(x, means, variances, num_rows, channels, x_apart, block_rows, COLS: tl.constexpr, TILE: tl.constexpr):
    """Compute mean and biased variance of each block of `block_rows` rows, per channel."""
    block = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, COLS)
    in_cols = cols < channels
    count = 0.0
    mean = tl.zeros([COLS], dtype=tl.float32)
    spread = tl.zeros([COLS], dtype=tl.float32)
    for start in range(0, block_rows, TILE):
        rows = block * block_rows + start + tl.arange(0, TILE)
        inside = (rows < num_rows)[:, None] & in_cols[None, :]
        where = (sample * x_apart + rows)[:, None] * channels + cols[None, :]
        tile = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
        count, mean, spread = _merge(count, mean, spread, tile, rows < num_rows, inside)
    place = (sample * tl.num_programs(0) + block) * channels + cols
    tl.store(means + place, mean, mask=in_cols)
    tl.store(variances + place, spread / count, mask=in_cols)


@triton.jit(do_not_specialize=["num_rows", "y_apart", "residual_apart", "block_rows"])
def add(
    y,
    y_bias,
    residual,
    residual_bias,
    means,
    variances,
    num_rows,
    channels,
    y_apart,
    residual_apart,
    block_rows,
    HAS_RESIDUAL: tl.constexpr,
    HAS_RESIDUAL_BIAS: tl.constexpr,
    MEASURE: tl.constexpr,
    COLS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Add to y its bias, the residual and the residual's bias, in place, rounded once. MEASURE: as `statistics`.

    The statistics are those of the rounded values, which are the ones that the next norm reads.
    """
    block = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, COLS)
    in_cols = cols < channels
    bias = tl.load(y_bias + cols, mask=in_cols, other=0.0).to(tl.float32)
    if HAS_RESIDUAL_BIAS:
        bias += tl.load(residual_bias + cols, mask=in_cols, other=0.0).to(tl.float32)
    count = 0.0
    mean = tl.zeros([COLS], dtype=tl.float32)
    spread = tl.zeros([COLS], dtype=tl.float32)
    for start in range(0, block_rows, TILE):
        rows = block * block_rows + start + tl.arange(0, TILE)
        inside = (rows < num_rows)[:, None] & in_cols[None, :]
        where = rows[:, None] * channels + cols[None, :]
        at = y + sample * y_apart * channels + where
        total = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            total += tl.load(residual + sample * residual_apart * channels + where, mask=inside, other=0.0).to(
                tl.float32
            )
        rounded = (total + bias[None, :]).to(y.dtype.element_ty)
        tl.store(at, rounded, mask=inside)
        if MEASURE:
            tile = tl.where(inside, rounded.to(tl.float32), 0.0)
            count, mean, spread = _merge(count, mean, spread, tile, rows < num_rows, inside)
    if MEASURE:
        place = (sample * tl.num_programs(0) + block) * channels + cols
        tl.store(means + place, mean, mask=in_cols)
        tl.store(variances + place, spread / count, mask=in_cols)


@triton.jit(do_not_specialize=["num_rows", "num_blocks", "block_rows"])
def finalise(
    means,
    variances,
    bias,
    weight,
    offset,
    scale,
    shift,
    num_rows,
    num_blocks,
    repeats,
    block_rows,
    eps,
    HAS_BIAS: tl.constexpr,
    COLS: tl.constexpr,
    JOINED: tl.constexpr,
):
    """Join blocks to groups of `repeats` channels, and compute the norm's scale and shift per channel.

    A bias that is not yet added to the data moves the means and not the variances of channels. The shift then holds it:
    (x + bias - mean) * scale + offset = x * scale + shift. One program a group and sample, JOINED blocks at a time.
    """
    group = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    channels = tl.num_programs(0) * repeats
    inner = tl.arange(0, COLS)
    in_cols = inner < repeats
    cols = group * repeats + inner
    moved = tl.zeros([COLS], dtype=tl.float64)
    if HAS_BIAS:
        moved += tl.load(bias + cols, mask=in_cols, other=0.0).to(tl.float64)
    elements = tl.full([], 1.0, tl.float64) * num_rows * repeats
    mean = tl.zeros([COLS], dtype=tl.float64)
    for start in range(0, num_blocks, JOINED):
        blocks = start + tl.arange(0, JOINED)
        inside = (blocks < num_blocks)[:, None] & in_cols[None, :]
        sizes = (
            tl.maximum(tl.minimum(num_rows - blocks.to(tl.int64) * block_rows, block_rows), 0).to(tl.float64) / elements
        )
        where = (sample * num_blocks + blocks)[:, None] * channels + cols[None, :]
        part = tl.load(means + where, mask=inside, other=0.0).to(tl.float64) + moved[None, :]
        mean += tl.sum(tl.where(inside, sizes[:, None] * part, 0.0), axis=0)
    group_mean = tl.sum(mean, axis=0)
    spread = tl.zeros([COLS], dtype=tl.float64)
    for start in range(0, num_blocks, JOINED):
        blocks = start + tl.arange(0, JOINED)
        inside = (blocks < num_blocks)[:, None] & in_cols[None, :]
        sizes = (
            tl.maximum(tl.minimum(num_rows - blocks.to(tl.int64) * block_rows, block_rows), 0).to(tl.float64) / elements
        )
        where = (sample * num_blocks + blocks)[:, None] * channels + cols[None, :]
        away = tl.load(means + where, mask=inside, other=0.0).to(tl.float64) + moved[None, :] - group_mean
        within = tl.load(variances + where, mask=inside, other=0.0).to(tl.float64)
        spread += tl.sum(tl.where(inside, sizes[:, None] * (within + away * away), 0.0), axis=0)
    factor = tl.load(weight + cols, mask=in_cols, other=0.0).to(tl.float64) / tl.sqrt(tl.sum(spread, axis=0) + eps)
    start_at = tl.load(offset + cols, mask=in_cols, other=0.0).to(tl.float64)
    place = sample * channels + cols
    tl.store(scale + place, factor.to(tl.float32), mask=in_cols)
    tl.store(shift + place, (start_at + (moved - group_mean) * factor).to(tl.float32), mask=in_cols)


@triton.jit(do_not_specialize=["num_rows", "num_kept", "x_apart", "out_apart", "kept_apart"])
def scale_shift_silu(
    x,
    out,
    kept,
    scale,
    shift,
    num_rows,
    num_kept,
    channels,
    x_apart,
    out_apart,
    kept_apart,
    KEEP: tl.constexpr,
    COLS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Compute silu(x * scale + shift) of TILE rows, in float32, rounded once. KEEP: the last rows go to `kept`, too."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    sample = tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, COLS)
    inside = (rows < num_rows)[:, None] & (cols < channels)[None, :]
    where = rows[:, None] * channels + cols[None, :]
    factor = tl.load(scale + sample * channels + cols, mask=cols < channels, other=0.0)
    offset = tl.load(shift + sample * channels + cols, mask=cols < channels, other=0.0)
    value = tl.load(x + sample * x_apart * channels + where, mask=inside, other=0.0).to(tl.float32)
    y = value * factor[None, :] + offset[None, :]
    y = (y / (1.0 + tl.exp(-y))).to(out.dtype.element_ty)
    tl.store(out + sample * out_apart * channels + where, y, mask=inside)
    if KEEP:
        row_kept = rows - (num_rows - num_kept)
        place = row_kept[:, None] * channels + cols[None, :]
        tl.store(kept + sample * kept_apart * channels + place, y, mask=inside & (row_kept >= 0)[:, None])


@triton.jit(do_not_specialize=["num_rows", "x_apart", "out_apart"])
def rms_silu(x, out, weight, num_rows, channels, least, x_apart, out_apart, COLS: tl.constexpr, TILE: tl.constexpr):
    """Compute silu(x / max(|x|, least) * weight) of TILE rows, |x| over the channels, in float32, rounded once."""
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    sample = tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, COLS)
    inside = (rows < num_rows)[:, None] & (cols < channels)[None, :]
    where = rows[:, None] * channels + cols[None, :]
    y = tl.load(x + sample * x_apart * channels + where, mask=inside, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(y * y, axis=1)), least)
    y = y / length[:, None] * tl.load(weight + cols, mask=cols < channels, other=0.0)[None, :]
    y = y / (1.0 + tl.exp(-y))
    tl.store(out + sample * out_apart * channels + where, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "height", "width", "alone", "edge", "x_apart", "out_apart"])
def pool_time(
    x,
    out,
    num_rows,
    channels,
    height,
    width,
    alone,
    edge,
    x_apart,
    out_apart,
    COLS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Copy the first `alone` frames and average the pairs after them, into frames with `edge` more rows and columns.

    A row is one pixel of the output; the added ones are zeros. Halving is exact, so the mean is rounded once.
    """
    rows = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    sample = tl.program_id(1).to(tl.int64)
    cols = tl.arange(0, COLS)
    across = rows % (width + edge)
    down = rows // (width + edge) % (height + edge)
    frame = rows // ((width + edge) * (height + edge))
    in_cols = (cols < channels)[None, :]
    stored = (rows < num_rows)[:, None] & in_cols
    loaded = stored & ((across < width) & (down < height))[:, None]
    paired = loaded & (frame >= alone)[:, None]
    first = tl.where(frame < alone, frame, alone + 2 * (frame - alone))
    where = (sample * x_apart + (first * height + down) * width + across)[:, None] * channels + cols[None, :]
    left = tl.load(x + where, mask=loaded, other=0.0).to(tl.float32)
    partner = where + tl.full([], 1, tl.int64) * height * width * channels
    right = tl.load(x + partner, mask=paired, other=0.0).to(tl.float32)
    value = tl.where(paired, (left + right) * 0.5, left)
    at = out + (sample * out_apart + rows)[:, None] * channels + cols[None, :]
    tl.store(at, value.to(out.dtype.element_ty), mask=stored)
