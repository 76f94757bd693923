"""Statistics of intensity and texture: the features of a volume where no trained network is at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import sha256_of

REGIONS = 4  # per axis, so that what moves, or is mirrored, is seen
EDGES = (-950.0, -500.0, -150.0, -30.0, 100.0, 200.0)  # HU between air, lung, fat, soft tissue and bone
PERIOD = 8  # voxels: patches of 2, 4 and 8 have their seams at some position of it
SOFTENING = 5.0  # HU: differences far below it count as none
# Typical spread of each group between chests, measured on phantoms at 64^3: divided by it, the groups weigh alike.
MEAN, SHARES, DIFFERENCES, SEAMS = 54.0, 0.032, (0.10, 0.15, 0.20, 0.30), 0.047


class TextureStatistics(nn.Module):
    """Volumes (B, 1, X, Y, Z) in HU to statistics (B, D), 1,304 of them from 16 voxels per axis on.

    In each of 4 x 4 x 4 regions the mean HU, shares of voxels in bands of HU, and the mean logarithm of differences between
    neighbours along each axis, at four resolutions. The same differences by their position modulo 8 see the seams of
    patches. The mean of a logarithm sees the grain of flat tissue, which edges would hide in a mean square.
    """

    label, trained, sha256 = "intensity and texture statistics", False, sha256_of(__file__)

    def forward(self, volumes: Tensor) -> Tensor:
        x = volumes.float()
        bands = torch.bucketize(x, torch.tensor(EDGES, device=x.device))
        groups = [
            _regions(x) / MEAN,
            torch.cat([_regions((bands == i).float()) for i in range(len(EDGES) + 1)], 1) / SHARES,
            torch.cat([_by_position(one, axis) for axis, one in _log_differences(x).items()], 1) / SEAMS,
        ]
        for spread in DIFFERENCES:
            if min(x.shape[2:]) > 1:
                groups.append(torch.cat([_regions(one) for one in _log_differences(x).values()], 1) / spread)
                x = F.avg_pool3d(x, 2)
        return torch.cat([group / group.shape[1] ** 0.5 for group in groups], 1)


def _regions(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool3d(x, REGIONS).flatten(1)


def _log_differences(x: Tensor) -> dict[int, Tensor]:
    return {axis: (x.diff(dim=axis).abs() + SOFTENING).log() for axis in (2, 3, 4)}


def _by_position(differences: Tensor, axis: int) -> Tensor:
    """Mean at each position modulo `PERIOD` along an axis, less their mean: (B, PERIOD), 0 where the axis is shorter."""
    means = differences.movedim(axis, 1).flatten(2).mean(2)
    count = means.shape[1] // PERIOD
    if count == 0:
        return means.new_zeros(len(means), PERIOD)
    positions = means[:, : count * PERIOD].unflatten(1, (count, PERIOD)).mean(1)
    return positions - positions.mean(1, keepdim=True)
