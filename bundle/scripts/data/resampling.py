"""A CT on another grid: averaged where the new voxels are larger, interpolated once."""

from __future__ import annotations

from typing import Sequence

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import SpatialResample

from .geometry import extent
from .hounsfield import AIR_HU, LOWEST_HU

_SLAB = 32  # slices that are resampled at a time


def resample(volume: MetaTensor, affine: np.ndarray, size: Sequence[int]) -> torch.Tensor:
    """HU (1, ...) of any affine, sheared or oblique too, to float32 (1, *size) on another grid; air outside the scan.

    Where the new voxels are at least twice as large, the volume is first averaged by whole factors, so that nothing
    is aliased; then it is interpolated once, trilinear.
    """
    source = np.asarray(volume.affine, float)
    factors = _whole_factors(source, affine, volume.shape[1:])
    cropped, source = _crop(volume.as_tensor(), source, extent(size, affine), factors)
    pooled = cropped.float().clamp_(min=LOWEST_HU)
    if max(factors) > 1:
        pooled = F.avg_pool3d(pooled[None], factors)[0]
    source = source @ _pooling(factors)
    hu = torch.empty(1, *size)
    for start in range(0, size[2], _SLAB):  # the places of all voxels at once would be larger than the scan
        part, slab = affine.copy(), hu[..., start : start + _SLAB]
        part[:3, 3] += start * affine[:3, 2]
        to_grid = {"dst_affine": torch.from_numpy(part), "spatial_size": list(slab.shape[1:])}
        found = SpatialResample("bilinear", "border", dtype=torch.float32)(MetaTensor(pooled, affine=source), **to_grid)
        outside = _outside(pooled.shape[1:], np.linalg.inv(source) @ part, slab.shape[1:])
        slab.copy_(found.as_tensor().masked_fill_(outside, AIR_HU))
    return hu


def _outside(shape: Sequence[int], to_source: np.ndarray, size: Sequence[int]) -> torch.Tensor:
    """Which voxels of a grid of some size lie outside of a volume; (4, 4) leads to its voxels."""
    x, y, z = (torch.arange(side, dtype=torch.float64) for side in size)
    outside = torch.zeros(*size, dtype=torch.bool)
    for row, side in zip(to_source.tolist(), shape):
        place = row[0] * x[:, None, None] + row[1] * y[:, None] + row[2] * z + row[3]
        outside |= (place < -0.5) | (place > side - 0.5)
    return outside


def _crop(
    volume: torch.Tensor, affine: np.ndarray, box: tuple[np.ndarray, np.ndarray], margin: Sequence[int]
) -> tuple[torch.Tensor, np.ndarray]:
    """The part of a volume (1, ...) around a box in mm, with a margin in voxels, and its affine."""
    corners = np.stack(np.meshgrid(*zip(*box), indexing="ij"), -1).reshape(-1, 3)
    index = (corners - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    sides = np.array(volume.shape[1:])
    start = np.clip(np.floor(index.min(axis=0)).astype(int) - margin, 0, sides - 1)
    stop = np.clip(np.ceil(index.max(axis=0)).astype(int) + margin + 1, start + 1, sides)
    part = volume[:, start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]]
    shifted = affine.copy()
    shifted[:3, 3] = affine[:3, :3] @ start + affine[:3, 3]
    return part, shifted


def _whole_factors(source: np.ndarray, target: np.ndarray, shape: Sequence[int]) -> list[int]:
    """How many source voxels go into a target voxel along each axis of the source."""
    axes = nib.io_orientation(np.linalg.inv(target) @ source)[:, 0].astype(int)
    own, wanted = np.linalg.norm(source[:3, :3], axis=0), np.linalg.norm(target[:3, :3], axis=0)[axes]
    return [min(max(1, int(ratio + 1e-3)), side) for ratio, side in zip(wanted / own, shape)]


def _pooling(factors: Sequence[int]) -> np.ndarray:
    """Affine (4, 4) from voxels after average pooling to voxels before."""
    matrix = np.diag([*factors, 1.0])
    matrix[:3, 3] = (np.asarray(factors) - 1) / 2
    return matrix
