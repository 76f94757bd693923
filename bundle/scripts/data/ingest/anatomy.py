"""Where the body and the lungs are, by thresholds: enough to centre a volume, to take the table away, to warn."""

from __future__ import annotations

from typing import Optional

import numpy as np
from scipy import ndimage

BODY_HU = -500.0
_LUNG_HU = (-950.0, -600.0)

_IN_SLICE = ndimage.generate_binary_structure(3, 1) & np.array([0, 1, 0], bool)  # neighbours in the axial plane


def _largest_component(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    return labels == np.bincount(labels[mask]).argmax() if count else mask


def _opened(mask: np.ndarray, rounds: int) -> np.ndarray:
    """The mask without what is thinner than `rounds` voxels on either side."""
    return ndimage.binary_opening(mask, iterations=rounds)


def fill_axial_holes(mask: np.ndarray) -> np.ndarray:
    """Mask (X, Y, Z) with what it encloses in each axial slice: the lungs are open at the first and the last slice."""
    return ndimage.binary_fill_holes(mask, structure=_IN_SLICE)


def body_mask(volume: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Body with its lungs and without the table, (X, Y, Z), from HU of isotropic voxels."""
    body = _largest_component(_opened(volume > BODY_HU, max(1, round(4 / spacing_mm))))
    return fill_axial_holes(body)


def lung_mask(volume: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Air inside the body without thin airways, (X, Y, Z)."""
    return _opened((volume <= BODY_HU) & body, 1)


def lung_tissue(volume: np.ndarray, spacing_mm: float) -> np.ndarray:
    """What is as dense as lung, without layers thinner than 16 mm, (X, Y, Z): also where a crop cuts lungs open."""
    return _opened((volume > _LUNG_HU[0]) & (volume < _LUNG_HU[1]), max(1, round(8 / spacing_mm)))


def box_centre(mask: np.ndarray) -> Optional[np.ndarray]:
    """Middle of the box around a mask, in voxels; None where it is empty."""
    if not mask.any():
        return None
    ranges = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([(inside[0] + inside[-1]) / 2 for inside in ranges])
