"""What the shape and the affine of a volume say, and whether a header may be believed before memory is taken."""

from __future__ import annotations

import math
from typing import Sequence, Union

import numpy as np

from ..hardware import machine_memory

_LARGEST_MM = (1000.0, 1000.0, 2500.0)  # what a scanner's opening and a whole body allow, along RAS
_SMALLEST_VOXEL_MM = 0.01
_READING_BYTES = 8  # of memory for each voxel: as stored, and as the int16 or float32 that it becomes


def three(value: Union[float, Sequence[float]]) -> list[float]:
    """One number for all axes, or three."""
    values = [value] * 3 if isinstance(value, (int, float)) else list(value)
    if len(values) != 3 or any(item <= 0 for item in values):
        raise ValueError(f"expected one positive number or three, got {value}")
    return values


def ras_affine(centre: Sequence[float], size: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """RAS affine (4, 4) of an upright grid around a point in mm."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.asarray(centre) - np.multiply(spacing, np.asarray(size) - 1) / 2
    return affine


def grid_affine(grid: Sequence[int], field_of_view_mm: Sequence[float]) -> np.ndarray:
    """RAS affine (4, 4) of a volume centred at the origin, in mm."""
    return ras_affine([0.0] * 3, grid, np.divide(field_of_view_mm, grid).tolist())


def extent(shape: Sequence[int], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest RAS coordinates (3,) that the voxels of a grid reach, in mm."""
    corners = np.stack(np.meshgrid(*[(-0.5, side - 0.5) for side in shape], indexing="ij"), -1).reshape(-1, 3)
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    return world.min(axis=0), world.max(axis=0)


def one_volume(shape: Sequence[int]) -> tuple[int, ...]:
    """The three sides of a shape without trailing axes of 1; ValueError where it is not that of one 3D volume."""
    sides = tuple(int(side) for side in shape)
    while len(sides) > 3 and sides[-1] == 1:
        sides = sides[:-1]
    if len(sides) != 3 or min(sides) < 1:
        raise ValueError(f"not one 3D volume: its shape is {sides}")
    return sides


def require_plausible(shape: Sequence[int], affine: np.ndarray) -> None:
    """Refuses what no scan can be, from its header alone.

    Args:
        shape: of the volume, three sides.
        affine: RAS, in mm.

    Raises:
        ValueError: when voxels have no size or direction, the field of view is metres wide, or memory would not do.
    """
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or columns.min() < _SMALLEST_VOXEL_MM:
        raise ValueError("its geometry is not known: the voxel size is zero or not a number")
    if abs(np.linalg.det(affine[:3, :3] / columns)) < 1e-2:
        raise ValueError("its geometry is not known: two axes of the volume have one direction")
    low, high = extent(shape, affine)
    if (high - low > _LARGEST_MM).any():
        sides = " x ".join(f"{side:.0f}" for side in high - low)
        raise ValueError(f"its field of view is {sides} mm, more than a body's: the spacing or its unit is wrong")
    memory = machine_memory()
    if memory is not None and math.prod(shape) * _READING_BYTES > memory:
        sides = " x ".join(str(side) for side in shape)
        raise ValueError(f"its header tells of {sides} voxels, too many for the memory of this machine")
