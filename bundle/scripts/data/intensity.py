"""What the values of volumes are: HU, or the published per-volume scaling, which is marked from end to end."""

from __future__ import annotations

import numpy as np

HU = "HU"
PAPER_COMPAT = "paper_compat"  # each volume scaled to [0, 1] by its own 99.9 % quantile
PAPER_COMPAT_STEP = 1 / 32767  # of the integers in the files
_LOW, _HIGH = -1000.0, 1000.0  # what stands for 0 and 1 between loading and writing, so that nothing there asks


# what volumes of others may be scaled to
UNIT, SIGNED = "0 to 1", "-1 to 1"
_RANGES = {PAPER_COMPAT: (0.0, 1.0), UNIT: (0.0, 1.0), SIGNED: (-1.0, 1.0)}
_TOLERANCE = 0.1  # of the range: networks overshoot


def to_hu(values: np.ndarray, intensity: str) -> np.ndarray:
    """Values of a file as the networks' side takes them: HU, or what stands for HU.

    Raises:
        ValueError: in one line, when values are far outside of what they are said to be scaled to.
    """
    values = np.asanyarray(values)
    if intensity == HU:
        return values
    low, high = _RANGES[intensity]
    lowest, highest, room = float(values.min()), float(values.max()), _TOLERANCE * (high - low)
    if lowest < low - room or highest > high + room:
        raise ValueError(f"its values are {lowest:g} to {highest:g}, not {low:g} to {high:g} as its intensity says")
    scale = (_HIGH - _LOW) / (high - low)
    return (values - np.float32(low)) * np.float32(scale) + np.float32(_LOW)


def from_hu(values: np.ndarray, intensity: str) -> np.ndarray:
    """Inverse of `to_hu`."""
    return (values - _LOW) / (_HIGH - _LOW) if intensity == PAPER_COMPAT else values
