"""What the tests of the ingest share: a phantom as a scanner would send it, known places."""

from pathlib import Path

import numpy as np
from dicom_series import as_dicom, write_series

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
REAL_CT = BUNDLE.parents[1] / "shared" / "ct"
SIDE_MM = 10.0  # of the tests' voxels: a whole chest in 32 of them


def write_chest(folder, volume, name="a", **tags):
    """The phantom as an axial series with its true geometry."""
    corner = -SIDE_MM * (np.array(volume.shape) - 1) / 2
    geometry = {"origin": corner, "spacing": (SIDE_MM, SIDE_MM), "step": (0, 0, SIDE_MM)}
    return write_series(folder, as_dicom(volume), name, **{**geometry, **tags})


def volumes_of(folder):
    return {path.name: path for path in (folder / "volumes").iterdir()}


def linear(points, slope=(3.0, -2.0, 2.5)):
    """HU that are linear in world coordinates (..., 3): trilinear interpolation and averages keep them exactly."""
    return points @ np.asarray(slope) - 100


def world(shape, affine):
    return np.einsum("ij,jxyz->xyzi", affine[:3, :3], np.indices(shape)) + affine[:3, 3]
