"""CT volumes from whatever file they are in, as (1, ...) with a RAS affine in mm. Nothing is written or changed."""

from __future__ import annotations

from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from monai.data import ITKReader, MetaTensor, NibabelReader

from ..files import PathLike
from .dicom import Series, read_series

NIFTI_SUFFIXES = (".nii", ".nii.gz")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".mhd", ".nrrd")
RAD_CHEST_SUFFIX = ".npz"
RAD_CHEST_SPACING = 0.8  # mm


def read_dicom(series: Series) -> MetaTensor:
    """HU (1, slices, rows, columns); ValueError with the reason, see `read_series`."""
    meta = {"warnings": series.warnings} if series.warnings else None
    return MetaTensor(torch.from_numpy(read_series(series))[None], affine=series.affine, meta=meta)


def read_file(path: PathLike) -> MetaTensor:
    """A NIfTI, MetaImage, NRRD or RAD-ChestCT file as (1, ...), its values as they are stored.

    Raises:
        ValueError: with the reason, when it cannot be read or its geometry is not known.
    """
    name = str(path).lower()
    if name.endswith(RAD_CHEST_SUFFIX):
        return _read_rad_chest(path)
    try:
        array, meta = _read_nifti(path) if name.endswith(NIFTI_SUFFIXES) else _read_itk(path)
    except _NoOrientation as error:
        raise ValueError(str(error)) from None
    except Exception:  # readers raise whatever they like on a broken file
        raise ValueError("cannot be read as a volume; remove it or export it again") from None
    if array.ndim != 3:
        raise ValueError(f"not one 3D volume: its shape is {array.shape}")
    affine = np.asarray(meta["affine"], float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise ValueError("its geometry is not known: the voxel size is zero or not a number")
    dtype = np.int16 if array.dtype in (np.int8, np.uint8, np.int16) else np.float32
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))[None], affine=affine)


class _NoOrientation(Exception):
    pass


def _read_nifti(path: PathLike) -> tuple[np.ndarray, dict[str, Any]]:
    reader = NibabelReader()
    image = reader.read(path)
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise _NoOrientation("its orientation is not known: sform_code and qform_code are 0")
    return reader.get_data(image)


def _read_itk(path: PathLike) -> tuple[np.ndarray, dict[str, Any]]:
    reader = ITKReader()
    return reader.get_data(reader.read(path))


def _read_rad_chest(path: PathLike) -> MetaTensor:
    """RAD-ChestCT stores HU as (slice, row, column), from the head down, as a radiologist looks at the slices.

    Source: rachellea/ct-volume-preprocessing, which made the data set; the origin is not kept there.
    """
    try:
        with np.load(path) as content:
            array = content["ct"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        raise ValueError("no RAD-ChestCT file: it has no readable array 'ct'") from None
    if array.ndim != 3:
        raise ValueError(f"not one 3D volume: its shape is {array.shape}")
    # columns run to the patient's left, rows to the back, slices to the feet
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *[-RAD_CHEST_SPACING] * 3, 1.0
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(array.shape) - 1) / 2)
    dtype = np.int16 if array.dtype == np.int16 else np.float32
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))[None], affine=affine)
