"""Sizes of organs by TotalSegmentator (Wasserthal et al. 2023), which is not installed with the bundle."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Sequence

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

# What a chest CT shows whole, or nearly; the names of TotalSegmentator's task 'total' begin so.
STRUCTURES = {
    "lungs": "lung_",
    "trachea": "trachea",
    "heart": "heart",
    "aorta": "aorta",
    "liver": "liver",
    "ribs": "rib_",
    "sternum": "sternum",
    "vertebrae": "vertebrae_T",
}
COUNTED = ("ribs", "vertebrae")
MIN_PART_ML = 1.0  # what is smaller is no rib and no vertebra
ORGAN_NAMES = (*(f"{name} (ml)" for name in STRUCTURES), *(f"number of {name}" for name in COUNTED))


class OrganSegmenter:
    """Volumes (X, Y, Z) in HU, RAS, to the sizes of `ORGAN_NAMES`; an organ that is not found has 0 ml.

    Args:
        device: that TotalSegmentator runs on.
        fast: its network for 3 mm instead of that for 1.5 mm.

    Raises:
        ValueError: in one line, when TotalSegmentator is not installed, or stops, mostly for want of its weights.
    """

    def __init__(self, device: torch.device, fast: bool = True) -> None:
        try:
            from totalsegmentator.map_to_binary import class_map
            from totalsegmentator.python_api import totalsegmentator
        except ImportError as error:
            raise ValueError(f"TotalSegmentator cannot be used ({error}): pip install TotalSegmentator") from None
        self.segment, self.device, self.fast = totalsegmentator, device, fast
        self.codes = {
            name: [code for code, label in class_map["total"].items() if label.startswith(start)]
            for name, start in STRUCTURES.items()
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What the sizes depend on besides the volume."""
        return {"TotalSegmentator": version("TotalSegmentator"), "task": "total", "fast": self.fast}

    def __call__(self, volume: Tensor, spacing_mm: Sequence[float]) -> Tensor:
        """(X, Y, Z) in HU, spacing in mm -> (10,), ml and numbers in the order of `ORGAN_NAMES`."""
        image = nib.Nifti1Image(volume.round().cpu().numpy().astype(np.int16), np.diag([*spacing_mm, 1.0]))
        device = "cpu" if self.device.type == "cpu" else f"gpu:{self.device.index or 0}"
        try:
            labels = self.segment(image, None, ml=True, fast=self.fast, quiet=True, device=device, skip_saving=True)
        except OSError as error:  # requests' errors, too
            task = "total_fast" if self.fast else "total"
            raise ValueError(
                f"TotalSegmentator stopped: {error.strerror or type(error).__name__}; if it could not fetch its weights, "
                f"run totalseg_download_weights -t {task} where there is a network"
            ) from None
        voxels = np.bincount(np.asarray(labels.dataobj).astype(np.int64).ravel(), minlength=256)
        return self._sizes(voxels * np.prod(spacing_mm) / 1000)

    def _sizes(self, ml: np.ndarray) -> Tensor:
        """From the volume of each label."""
        totals = [ml[codes].sum() for codes in self.codes.values()]
        counts = [(ml[self.codes[name]] >= MIN_PART_ML).sum() for name in COUNTED]
        return torch.tensor([*totals, *counts], dtype=torch.float64)
