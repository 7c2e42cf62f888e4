"""Join the statistics of blocks into those of groups, exactly, in float64."""

from __future__ import annotations

from torch import Tensor


def join_blocks(means: Tensor, variances: Tensor, sizes: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each group, repeated for its channels.

    Args:
        means: (blocks, C), per channel.
        variances: (blocks, C), biased, per channel.
        sizes: (blocks,) float64, elements of each block.
        num_groups: groups of adjacent channels.

    Returns:
        Two (C,) float32 tensors.
    """
    num_blocks, channels = means.shape
    repeats = channels // num_groups
    share = (sizes / (sizes.sum() * repeats))[:, None, None]
    mean_bgc = means.double().view(num_blocks, num_groups, repeats)
    variance_bgc = variances.double().view(mean_bgc.shape)
    mean = (share * mean_bgc).sum((0, 2))
    variance = (share * (variance_bgc + (mean_bgc - mean[:, None]).square())).sum((0, 2))
    return mean.float().repeat_interleave(repeats), variance.float().repeat_interleave(repeats)
