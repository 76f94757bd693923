"""Sizes of the lungs and the body by simple thresholds; a check of plausibility, no segmentation."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from scipy import ndimage

from ..data.anatomy import fill_axial_holes

AIR_THRESHOLD_HU = -400.0  # between lung and soft tissue
TABLE_MM = 30.0  # what is thinner from front to back is table or blanket
ARM_MM = 100.0  # what is narrower from left to right is an arm
ANATOMY_NAMES = ("lung volume (l)", "mean lung density (HU)", "body width (cm)", "body depth (cm)")


def anatomy_sizes(volume: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Lung volume in litres, mean lung density in HU, and the body's width and depth in cm: `ANATOMY_NAMES`.

    Lung is air (below -400 HU) that its axial slice encloses: the airways and gas in the bowels count, a lung that
    opens to a side of the volume does not. The body is what is not air around the patient, without table and arms; its
    width and depth are medians over axial slices.

    Args:
        volume: (X, Y, Z) in HU, RAS.
        spacing_mm: of its voxels.

    Returns:
        (4,); NaN for a density or size of what is not there.
    """
    air = volume < AIR_THRESHOLD_HU
    outside = ~fill_axial_holes(~air)
    lung = air & ~outside
    lung_l = lung.sum() * np.prod(spacing_mm) / 1e6
    density = volume[lung].mean() if lung.any() else np.nan
    body = _opened(~outside, 1, TABLE_MM / spacing_mm[1])
    depth_cm = _extent(body, 1) * spacing_mm[1] / 10
    width_cm = _extent(_opened(body, 0, ARM_MM / spacing_mm[0]), 0) * spacing_mm[0] / 10
    return np.array([lung_l, density, width_cm, depth_cm])


def _opened(mask: np.ndarray, axis: int, voxels: float) -> np.ndarray:
    """Mask (X, Y, Z) without what is shorter than so many voxels along an axis."""
    shape = [1, 1, 1]
    shape[axis] = min(max(1, round(voxels)), mask.shape[axis])
    return ndimage.binary_opening(mask, np.ones(shape, bool))


def _extent(mask: np.ndarray, axis: int) -> float:
    """Median over axial slices of the voxels from the first to the last of a mask along an axis; NaN for an empty one."""
    shadow = np.asarray(mask.any(1 - axis))  # (X or Y, Z)
    shadow = shadow[:, shadow.any(0)]
    lengths = len(shadow) - shadow.argmax(0) - shadow[::-1].argmax(0)
    return float(np.median(lengths)) if lengths.size else np.nan
