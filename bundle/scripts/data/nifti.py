"""CT volumes as NIfTI that every viewer shows at the right place and size."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np

from ..files import PathLike, whole_file
from .intensity import HU, PAPER_COMPAT, PAPER_COMPAT_STEP

# step of the stored integers, what viewers show black and white, what the header says
_STORAGE = {
    HU: (1.0, (-1000.0, 400.0), "in HU"),
    PAPER_COMPAT: (PAPER_COMPAT_STEP, (0.0, 1.0), "scaled to 0-1, not HU"),
}


def save_nifti(volume: np.ndarray, affine: np.ndarray, path: PathLike, description: str, intensity: str = HU) -> None:
    """Writes a volume (X, Y, Z) as int16 with its RAS affine in mm, in sform and qform; the same bytes every time.

    Args:
        volume: values.
        affine: (4, 4).
        path: ends in .nii.gz.
        description: at most 55 characters; what the values are is added.
        intensity: 'HU' or 'paper_compat'.
    """
    slope, display, unit = _STORAGE[intensity]
    image = nib.Nifti1Image(np.rint(volume / slope).astype(np.int16), affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = display
    image.header["descrip"] = f"{description}, {unit}".encode()
    image.header.set_slope_inter(slope, 0)
    with whole_file(path) as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as compressed:
        image.to_stream(compressed)
