"""Ribs and vertebrae, counted without labels: a histogram of bone does not see whether they are apart, the eye does."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from scipy import ndimage, signal

WALL_MM = 14.0  # chest wall beside the lungs in which ribs are looked for
BAND_MM = 100.0  # of it, from back to front about the middle of the lungs
RIB_MM = 25.0  # along z, a rib is thinner
LENGTH_MM = 50.0  # of the band that a rib runs through
RIB_HU = 80.0  # that it is brighter than what is above and below
COLUMN_MM = 24.0  # side of a column in the vertebral bodies
PERIOD_MM = 15.0  # vertebrae are not nearer to each other
DISC_MM = 10.0  # with its endplates
VERTEBRA_HU = 15.0  # that a vertebral body is brighter than its discs
SOFT_AND_BONE_HU = (-200.0, 400.0)


def count_bones(volume: np.ndarray, lung: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """Ribs of the mean of both sides, and vertebrae, over the height of the lungs; voxels of 10 mm show no ribs.

    Ribs are bright lines in the map of the brightest voxels of the chest wall, seen from the side. Vertebrae are the peaks,
    along z, of a column where the body is brightest behind the middle of the lungs.

    Args:
        volume: (X, Y, Z) in HU, RAS.
        lung: its lungs, of its shape.
        spacing_mm: of its voxels.

    Returns:
        Two numbers; NaN where there is no lung.
    """
    if not lung.any():
        return np.nan, np.nan
    (left, right), (back, front), (low, high) = (
        np.flatnonzero(lung.any(axes))[[0, -1]] for axes in ((1, 2), (0, 2), (0, 1))
    )
    part = (slice(None), slice(None), slice(low, high + 1))
    volume, lung = np.clip(volume[part], *SOFT_AND_BONE_HU), lung[part]
    rows = slice(*(max(round((back + front + 1 + side * BAND_MM / spacing_mm[1]) / 2), 0) for side in (-1, 1)))
    ribs = [_ribs(volume[::side, rows], lung[::side, rows], spacing_mm) for side in (-1, 1)]
    wide = round(COLUMN_MM / spacing_mm[0])
    middle = slice(max((left + right) // 2 - wide, 0), (left + right) // 2 + wide + 1)
    return float(np.mean(ribs)), float(_vertebrae(volume[middle, back : (back + front) // 2 + 1], spacing_mm))


def _ribs(volume: np.ndarray, lung: np.ndarray, spacing_mm: Sequence[float]) -> int:
    """Of the side of the first x; (X, Y, Z)."""
    outside = lung.argmax(0) - 1 - np.arange(max(1, round(WALL_MM / spacing_mm[0])))[:, None, None]
    brightest = np.take_along_axis(volume, outside.clip(min=0), 0).max(0)  # (Y, Z)
    brightest[~lung.any(0)] = SOFT_AND_BONE_HU[0]
    lines = brightest - ndimage.grey_opening(brightest, (1, max(1, round(RIB_MM / spacing_mm[2]))))
    found = ndimage.find_objects(ndimage.label(lines > RIB_HU)[0])
    return sum((one[0].stop - one[0].start) * spacing_mm[1] >= LENGTH_MM for one in found)


def _vertebrae(volume: np.ndarray, spacing_mm: Sequence[float]) -> int:
    """Of what is between back and middle of the lungs, (X, Y, Z)."""
    size = [max(1, round(mm / one)) for mm, one in zip((COLUMN_MM, COLUMN_MM, 4 * COLUMN_MM), spacing_mm)]
    bright = ndimage.uniform_filter(volume, size)
    spine = bright >= np.quantile(bright, 0.9, axis=(0, 1))  # where it is at this height
    profile = ndimage.gaussian_filter1d((volume * spine).sum((0, 1)) / spine.sum((0, 1)), DISC_MM / 4 / spacing_mm[2])
    return len(signal.find_peaks(profile, prominence=VERTEBRA_HU, distance=max(1, round(PERIOD_MM / spacing_mm[2])))[0])
