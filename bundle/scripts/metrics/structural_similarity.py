"""MS-SSIM between volumes of one set, with scales and a kernel that fit the grid."""

from __future__ import annotations

from typing import Sequence

import torch
from monai.metrics import MultiScaleSSIMMetric

# Wang, Simoncelli and Bovik (2003), finest scale first
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MAX_KERNEL = 11


def ms_ssim_settings(grid: Sequence[int]) -> tuple[list[float], int]:
    """Scale weights and kernel size for a grid: five scales where a kernel of 3 voxels fits, else fewer.

    The coarsest side, and side // (scales - 1)^2 as MONAI asks, must hold the kernel. Fewer scales share the weight of those left out.

    Raises:
        ValueError: in one line, when not even two scales fit.
    """
    for scales in range(len(SCALE_WEIGHTS), 1, -1):
        room = min(grid) // max((scales - 1) ** 2, 2 ** (scales - 1))
        if room >= 3:
            weights = SCALE_WEIGHTS[:scales]
            return [weight / sum(weights) for weight in weights], min(MAX_KERNEL, room - (room + 1) % 2)
    raise ValueError(f"MS-SSIM needs a grid of 6 voxels or more along each axis, not {list(grid)}")


def ms_ssim_metric(grid: Sequence[int]) -> MultiScaleSSIMMetric:
    """MONAI's metric for volumes scaled to [0, 1]."""
    weights, kernel = ms_ssim_settings(grid)
    return MultiScaleSSIMMetric(spatial_dims=3, data_range=1.0, kernel_size=kernel, weights=weights)


def random_pairs(count: int, num_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Different pairs of different volumes, at most as many as there are."""
    pairs = torch.combinations(torch.arange(count)) if count <= 2000 else torch.randint(count, (4 * num_pairs, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:num_pairs]
    return [(int(i), int(j)) for i, j in pairs[order]]
