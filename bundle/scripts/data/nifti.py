"""CT volumes as NIfTI that every viewer shows at the right place and size."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import nibabel as nib
import numpy as np

from ..files import PathLike, write_atomically

DISPLAY_WINDOW = (-1000.0, 400.0)  # HU; what viewers open the file with


def save_nifti(
    volume: np.ndarray,
    affine: np.ndarray,
    path: PathLike,
    description: str,
    slope: float = 1.0,
    display: Sequence[float] = DISPLAY_WINDOW,
) -> None:
    """Writes a volume (X, Y, Z) as int16 with its RAS affine in mm, in sform and qform; the same bytes every time.

    Args:
        volume: values; HU for a slope of 1.
        affine: (4, 4).
        path: ends in .nii.gz.
        description: at most 79 characters.
        slope: one step of the stored integers.
        display: the values that viewers show black and white.
    """
    image = nib.Nifti1Image(np.rint(volume / slope).astype(np.int16), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = display
    image.header["descrip"] = description.encode()
    image.header.set_slope_inter(slope, 0)
    write_atomically(path, lambda part: _save_as(image, part))


def _save_as(image: nib.Nifti1Image, part: Path) -> None:
    named = part.with_name(part.name + ".nii.gz")  # nibabel compresses what ends so
    try:
        nib.save(image, named)
        named.replace(part)
    finally:
        named.unlink(missing_ok=True)
