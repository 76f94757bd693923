"""CT volumes from whatever file they are in, as (1, ...) with a RAS affine in mm. Nothing is written or changed."""

from __future__ import annotations

import math
import os
import zipfile
from typing import Sequence

import numpy as np
import torch
from monai.data import MetaTensor

from ..files import PathLike
from .dicom import Series, read_series
from .geometry import one_volume, require_plausible
from .itk_files import META_SUFFIXES, NRRD_SUFFIXES, read_itk
from .nifti import PAIR_SUFFIXES, read_nifti
from .reasons import reason_of

RAD_CHEST_SPACING = 0.8  # mm
_KINDS = {
    "NIfTI": (".nii", ".nii.gz", *PAIR_SUFFIXES),
    "MetaImage": META_SUFFIXES,
    "NRRD": NRRD_SUFFIXES,
    "RAD-ChestCT": (".npz",),
}
VOLUME_SUFFIXES = tuple(suffix for suffixes in _KINDS.values() for suffix in suffixes)
DATA_SUFFIXES = (".raw", ".zraw", ".raw.gz", ".img", ".img.gz")  # of the files beside a header
HEADER_SUFFIXES = (*PAIR_SUFFIXES, ".mhd", ".nhdr")
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_NUMBERS = "iufcb"  # kinds of NumPy's dtypes
_SMALL = (np.int8, np.uint8, np.int16)  # what int16 holds


def kind_of(path: PathLike) -> str:
    """What a file is by its name, for reports; 'file' where that says nothing."""
    name = str(path).lower()
    return next((kind for kind, suffixes in _KINDS.items() if name.endswith(suffixes)), "file")


def parts_of(path: PathLike) -> tuple[str, ...]:
    """The files that hold a volume: itself, and the data of the same name beside a header."""
    name = str(path)
    suffix = next((suffix for suffix in HEADER_SUFFIXES if name.lower().endswith(suffix)), "")
    beside = [name[: -len(suffix)] + data for data in DATA_SUFFIXES] if suffix else []
    return (name, *(data for stem in beside for data in (stem, stem.upper()) if os.path.isfile(data)))


def read_dicom(series: Series) -> MetaTensor:
    """HU (1, slices, rows, columns); ValueError with the reason, see `read_series`."""
    meta = {"warnings": series.warnings} if series.warnings else None
    return MetaTensor(torch.from_numpy(read_series(series))[None], affine=series.affine, meta=meta)


def read_file(path: PathLike) -> MetaTensor:
    """A NIfTI, MetaImage, NRRD or RAD-ChestCT file as (1, ...), its values as they are stored.

    What is odd in its header, but leaves one reading, stands in the `meta` of the tensor as 'warnings'.

    Raises:
        ValueError: with the reason, when it cannot be read or its geometry is not known.
    """
    try:
        array, affine, warnings = _read(path)
        if array.dtype.kind not in _NUMBERS:
            raise ValueError("its voxels are no single numbers: colours, text or records")
        if array.dtype.kind == "c":
            if array.imag.any():
                raise ValueError("its voxels are complex numbers, HU are real")
            array = array.real
        dtype = np.int16 if array.dtype in _SMALL else np.float32
        values = torch.from_numpy(np.require(array, dtype, ["C", "W"]))[None]
    except Exception as error:  # readers raise whatever they like on a broken file
        raise ValueError(reason_of(error)) from None
    return MetaTensor(values, affine=affine, meta={"warnings": warnings} if warnings else None)


def _read(path: PathLike) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    kind = kind_of(path)
    if kind == "NIfTI":
        return read_nifti(path)
    return (*(_read_rad_chest(path) if kind == "RAD-ChestCT" else read_itk(path)), [])


def _read_rad_chest(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """RAD-ChestCT stores HU as (slice, row, column), from the head down, as a radiologist looks at the slices.

    Source: rachellea/ct-volume-preprocessing, which made the data set; the origin is not kept there.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("ct.npy") as file:
            version = np.lib.format.read_magic(file)
            stored, _, dtype = _NPY_HEADERS[version](file)
            whole = math.prod(stored) * dtype.itemsize <= archive.getinfo("ct.npy").file_size
        if not whole or dtype.kind not in _NUMBERS:
            raise ValueError
    except Exception:  # zipfile and NumPy raise many kinds
        raise ValueError("no RAD-ChestCT file: it has no readable array 'ct' of numbers") from None
    shape = one_volume(stored)
    # columns run to the patient's left, rows to the back, slices to the feet
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *[-RAD_CHEST_SPACING] * 3, 1.0
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    require_plausible(shape, affine)
    with np.load(path) as content:
        return content["ct"].reshape(shape), affine
