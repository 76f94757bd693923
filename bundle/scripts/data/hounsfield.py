"""Are these values Hounsfield units? Air, lung and soft tissue say so."""

from __future__ import annotations

import math
from typing import Optional, Sequence

import torch
from torch import Tensor

AIR_HU = -1000.0
LOWEST_HU = -1024.0  # scanners pad with less; nothing in a patient is below air
HIGHEST_HU = 3071.0  # that 12 bits hold, the usual range of CT
_MAX_ABOVE = 0.005  # share of the voxels
_AIR_AND_LUNG = (-1100.0, -600.0)
_SOFT_TISSUE = (-150.0, 150.0)
_MIN_AIR, _MIN_TISSUE = 0.005, 0.02  # shares of the voxels
_MOST_AIR = -900.0
_THINNED = 8  # pixels: enough to see that a plane is not blank
_MAX_SAMPLES = 4_000_000
_LARGEST_LABEL = 255
_LABELS_ALIKE = 0.9  # share of the voxels


def _looks_like_hu(sample: Tensor) -> bool:
    shares = [((sample >= low) & (sample <= high)).float().mean().item() for low, high in (_AIR_AND_LUNG, _SOFT_TISSUE)]
    return shares[0] >= _MIN_AIR and shares[1] >= _MIN_TISSUE


def is_label_map(volume: Tensor) -> bool:
    """Whether a volume (..., Z) holds numbers of organs instead of HU: whole, without large gaps, mostly like their neighbours.

    A windowed CT of 8 bits has whole numbers too, but they change from voxel to voxel.
    """
    low, high = float(volume.min()), float(volume.max())
    if not (low >= 0 and 1 <= high <= _LARGEST_LABEL) or (volume.is_floating_point() and (volume % 1).any()):
        return False
    num_labels = int((torch.histc(volume.float(), _LARGEST_LABEL + 1, 0, _LARGEST_LABEL) > 0).sum())
    like_neighbour = float((volume[..., 1:] == volume[..., :-1]).float().mean())
    return (num_labels == 2 or num_labels > high / 2) and like_neighbour > _LABELS_ALIKE


def hu_problem(volume: Tensor) -> Optional[str]:
    """Why the values of a volume cannot be those of a chest CT in HU; None if they can.

    A chest has air or lung (-1100 to -600) and soft tissue (-150 to 150). Where these are found after adding or taking
    away 1024, the usual intercept, the rescale was missed or done twice.
    """
    sample = volume.flatten()[:: volume.numel() // _MAX_SAMPLES + 1].float()
    if not sample.isfinite().all() or (volume.is_floating_point() and not volume.isfinite().all()):
        return "it has voxels that are not numbers"
    if _looks_like_hu(sample):
        return None
    found = f"its values are {float(volume.min()):g} to {float(volume.max()):g}"
    if _looks_like_hu(sample - 1024):
        return f"not in HU: {found}, which look like HU + 1024, the rescale was not applied"
    if _looks_like_hu(sample + 1024):
        return f"not in HU: {found}, which look like HU - 1024, the rescale was applied twice"
    return f"not a chest CT in HU: {found}, air would be near -1000 and soft tissue near 50"


def dense_warning(volume: Tensor) -> Optional[str]:
    """What to say of a volume with more metal than patients carry, or padding of the scanner that nothing names."""
    share = float((volume > HIGHEST_HU).float().mean())
    return (
        f"{share:.1%} of the voxels are above {HIGHEST_HU:.0f} HU: metal, or padding?" if share > _MAX_ABOVE else None
    )


def blank_warning(volume: Tensor, z_axis: int) -> Optional[str]:
    """What to say of planes with one value alone: a download that was not finished, slices that a program left empty.

    Air beside the patient may be so, but not between slices of the patient.

    Args:
        volume: (1, X, Y, Z) of any orientation.
        z_axis: 0 to 2, the one from the feet to the head.
    """
    for axis in range(3):
        planes = volume[0].movedim(axis, 0)
        few = planes[:, ::_THINNED, ::_THINNED]
        blank = few.amin((1, 2)) == few.amax((1, 2))
        for index in blank.nonzero()[:, 0].tolist():
            blank[index] = bool((planes[index] == planes[index, 0, 0]).all())
        values, full = planes[:, 0, 0], (~blank).nonzero()[:, 0]
        if not len(full):
            continue
        odd = blank & (values > _MOST_AIR)
        if axis == z_axis:
            odd[full[0] : full[-1]] |= blank[full[0] : full[-1]]
        if odd.any():
            found = f"{int(odd.sum())} of {len(odd)} planes hold one value each, like {float(values[odd][0]):g} HU"
            return f"{found}: is the file whole?"
    return None


def check_hu(volume: Tensor, name: str, hu_window: Optional[Sequence[float]] = None) -> None:
    """Raises a ValueError naming the volume when its range alone says that its values are no HU; cheap.

    Values clipped to a window, as generated volumes are, reach its ends where they would have reached beyond them.
    """
    lowest, highest = float(volume.min()), float(volume.max())
    if not math.isfinite(lowest - highest):
        raise ValueError(f"{name} has voxels that are not numbers")
    low, high = hu_window or (AIR_HU, -AIR_HU)
    if lowest > max(-400.0, low + 1) or highest < min(0.0, high - 1):  # files hold whole HU
        hint = "" if hu_window is None else "; volumes that were clipped to a narrow window need that as hu_window"
        raise ValueError(
            f"{name} is not a chest CT in HU: its values are {lowest:g} to {highest:g}, air would be near -1000{hint}"
        )
