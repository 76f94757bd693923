"""What the values of volumes are: HU, or the published per-volume scaling, which is marked from end to end."""

from __future__ import annotations

import numpy as np

HU = "HU"
PAPER_COMPAT = "paper_compat"  # each volume scaled to [0, 1] by its own 99.9 % quantile
PAPER_COMPAT_STEP = 1 / 32767  # of the integers in the files
_LOW, _HIGH = -1000.0, 1000.0  # what stands for 0 and 1 between loading and writing, so that nothing there asks


def to_hu(values: np.ndarray, intensity: str) -> np.ndarray:
    """Values of a file as the networks' side takes them: HU, or what stands for HU."""
    values = np.asanyarray(values)
    return values * np.float32(_HIGH - _LOW) + np.float32(_LOW) if intensity == PAPER_COMPAT else values


def from_hu(values: np.ndarray, intensity: str) -> np.ndarray:
    """Inverse of `to_hu`."""
    return (values - _LOW) / (_HIGH - _LOW) if intensity == PAPER_COMPAT else values
