"""Lungs, body, mediastinum, vessels and bone by simple thresholds; a check of plausibility, no segmentation."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from scipy import ndimage

from ..data.ingest.anatomy import fill_axial_holes
from .bones import count_bones

AIR_THRESHOLD_HU = -400.0  # between lung and soft tissue
SOFT_TISSUE_HU = -30.0  # fat is below
VESSEL_HU = -600.0  # what is denser is no lung tissue
BONE_HU = 250.0
TABLE_MM = 30.0  # what is thinner from front to back is table or blanket
ARM_MM = 100.0  # what is narrower from left to right is an arm
HILUM_MM = 10.0  # vessels up to twice as thick are inside the lung; nearer to its surface nothing is looked at
SIZE_NAMES = ("lung volume (l)", "mean lung density (HU)", "body width (cm)", "body depth (cm)", "mediastinum (HU)")
BONE_NAMES = ("ribs per side", "vertebrae")
ANATOMY_NAMES = (*SIZE_NAMES, "lung vessels (%)", "bone pieces", *BONE_NAMES)


def anatomy_sizes(volume: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """The numbers of `ANATOMY_NAMES`.

    Lung is air (below -400 HU) that its axial slice encloses: the airways and gas in the bowels count, a lung that
    opens to a side of the volume does not. The body is what is not air around the patient, without table and arms; its
    width and depth are medians over axial slices. The mediastinum is soft tissue and denser with lung on both sides, at
    40 to 80 % of the lungs' height, where blood is most of it: its median tells contrast medium. Lung vessels, and
    walls of airways, are the voxels above -600 HU in the lungs, 1 cm from their surface. Bone pieces are connected parts above 250 HU, over
    corners too: a speck is a piece. Ribs and vertebrae: see `count_bones`.

    Args:
        volume: (X, Y, Z) in HU, RAS.
        spacing_mm: of its voxels.

    Returns:
        (9,); NaN for a density or size of what is not there.
    """
    air = volume < AIR_THRESHOLD_HU
    outside = ~fill_axial_holes(~air)
    lung = air & ~outside
    lung_l = lung.sum() * np.prod(spacing_mm) / 1e6
    density = volume[lung].mean() if lung.any() else np.nan
    body = _opened(~outside, 1, TABLE_MM / spacing_mm[1])
    depth_cm = _extent(body, 1) * spacing_mm[1] / 10
    width_cm = _extent(_opened(body, 0, ARM_MM / spacing_mm[0]), 0) * spacing_mm[0] / 10
    vessels = _vessel_share(volume, lung, spacing_mm)
    pieces = ndimage.label(volume > BONE_HU, np.ones((3, 3, 3)))[1]
    sizes = (lung_l, density, width_cm, depth_cm, _mediastinum_hu(volume, lung))
    return np.array([*sizes, 100 * vessels, pieces, *count_bones(volume, lung, spacing_mm)])


def _mediastinum_hu(volume: np.ndarray, lung: np.ndarray) -> float:
    """Median HU between the lungs, where they are 40 to 80 % high; NaN where nothing is."""
    slices = np.flatnonzero(lung.any((0, 1)))
    if not len(slices):
        return np.nan
    first, height = slices[0], slices[-1] - slices[0]
    part = slice(int(first + 0.4 * height), int(first + 0.8 * height) + 1)
    lung, hu = lung[:, :, part], volume[:, :, part]
    between = np.maximum.accumulate(lung) & np.maximum.accumulate(lung[::-1])[::-1]
    found = hu[between & (hu > SOFT_TISSUE_HU)]
    return float(np.median(found)) if len(found) else np.nan


def _vessel_share(volume: np.ndarray, lung: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Share of vessels in the lungs, which are closed over vessels and then lose what is near their surface."""
    if not lung.any():
        return np.nan
    closed_and_wider = ndimage.distance_transform_edt(~lung, spacing_mm) <= HILUM_MM
    inner = ndimage.distance_transform_edt(closed_and_wider, spacing_mm) > 2 * HILUM_MM
    return float((volume[inner] > VESSEL_HU).mean()) if inner.any() else np.nan


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
