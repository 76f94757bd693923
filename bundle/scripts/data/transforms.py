"""Transforms that MONAI lacks: loading CT as HU or as a phantom, and average pooling to the training grid."""

from __future__ import annotations

from typing import Any, Hashable, Mapping, Optional, Sequence, Union

import itk
import numpy as np
import pydicom
import torch
import torch.nn.functional as F
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.transforms import MapTransform, Orientation, ResizeWithPadOrCrop, Spacing

from .phantom import chest_phantom

AIR_HU = -1000.0


def grid_affine(grid: Sequence[int], field_of_view_mm: Sequence[float]) -> np.ndarray:
    """RAS affine (4, 4) of a volume centred at the origin, in mm."""
    spacing = np.divide(field_of_view_mm, grid)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.asarray(grid) - 1) / 2
    return affine


def three(value: Union[float, Sequence[float]]) -> list[float]:
    """One number for all axes, or three."""
    values = [value] * 3 if isinstance(value, (int, float)) else list(value)
    if len(values) != 3 or any(item <= 0 for item in values):
        raise ValueError(f"expected one positive number or three, got {value}")
    return values


class LoadCTd(MapTransform):
    """Loads a file, a DICOM series or a phantom as (1, X, Y, Z) in HU, oriented RAS.

    Args:
        keys: of the path (str) or the phantom's seed (int); the item's 'series' lists the files of a DICOM series.
        grid: voxels of a phantom along each axis.
        field_of_view_mm: size of a phantom.

    Raises:
        ValueError: in one line naming the file, when it cannot be read or is not HU.
    """

    def __init__(self, keys: Hashable, grid: Sequence[int], field_of_view_mm: Union[float, Sequence[float]]) -> None:
        super().__init__(keys)
        self.grid, self.field_of_view_mm = [int(side) for side in three(grid)], three(field_of_view_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            source = out[key]
            out[key] = self._phantom(source) if isinstance(source, int) else self._file(source, out.get("series"))
        out.pop("series", None)
        return out

    def _phantom(self, seed: int) -> MetaTensor:
        volume = chest_phantom(seed, self.grid, self.field_of_view_mm)
        return MetaTensor(torch.from_numpy(volume)[None], affine=grid_affine(self.grid, self.field_of_view_mm))

    @staticmethod
    def _file(path: str, series: Optional[list[str]]) -> MetaTensor:
        if series is not None:
            check_series(series, path)
        reader = NibabelReader() if path.lower().endswith((".nii", ".nii.gz")) else ITKReader()
        try:
            array, meta = reader.get_data(itk.imread(series) if series is not None else reader.read(path))
        except Exception:  # readers raise whatever they like on a broken file
            raise ValueError(f"{path} cannot be read as a volume; remove it or export it again") from None
        if array.ndim != 3:
            raise ValueError(f"{path} is not one 3D volume: its shape is {array.shape}")
        volume = MetaTensor(
            torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None], affine=meta["affine"]
        )
        check_hu(volume, path)
        return Orientation(axcodes="RAS", labels=None)(volume)


def check_series(files: Sequence[str], name: str) -> None:
    """Raises a ValueError naming the DICOM series when its slices are no regular, rectangular stack."""
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    try:
        orientations = np.array([item.ImageOrientationPatient for item in slices], dtype=float)
        positions = np.array([item.ImagePositionPatient for item in slices], dtype=float)
    except AttributeError:
        raise ValueError(f"the DICOM series in {name} has slices without position or orientation") from None
    steps = np.diff(positions, axis=0)  # mm
    gaps = np.linalg.norm(steps, axis=1)
    if np.ptp(orientations, axis=0).max() > 1e-3 or gaps.max() - gaps.min() > 0.1 * np.median(gaps):
        raise ValueError(
            f"the DICOM series in {name} is no regular stack: its slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart"
        )
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    tilt = np.degrees(np.arccos(np.clip(abs(steps.mean(0) @ normal) / np.linalg.norm(steps.mean(0)), 0, 1)))
    if tilt > 0.5:
        raise ValueError(
            f"the DICOM series in {name} has a gantry tilt of {tilt:.1f} degrees, which is not corrected here"
        )


def check_hu(volume: torch.Tensor, name: str) -> None:
    """Raises a ValueError naming the volume when its values cannot be those of a chest CT in HU."""
    lowest, highest = float(volume.min()), float(volume.max())
    if not np.isfinite([lowest, highest]).all():
        raise ValueError(f"{name} has voxels that are not numbers")
    if lowest > -400 or highest < 0:
        raise ValueError(
            f"{name} is not a chest CT in HU: its values are {lowest:g} to {highest:g}, air would be near -1000"
        )


class ToGridd(MapTransform):
    """Resamples (1, X, Y, Z) to the training grid: crop or pad around the centre, then average pooling.

    Pooling by an integer factor leaves no aliasing; where the spacing is no such fraction of the grid's, the volume
    is first resampled (trilinear) to one, not finer than it was.

    Args:
        keys: of the volumes.
        grid: voxels along each axis.
        field_of_view_mm: size of the grid along each axis, or of all axes.
    """

    def __init__(self, keys: Hashable, grid: Sequence[int], field_of_view_mm: Union[float, Sequence[float]]) -> None:
        super().__init__(keys)
        self.grid = [int(side) for side in three(grid)]
        self.spacing = [fov / side for fov, side in zip(three(field_of_view_mm), self.grid)]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.pool(out[key])
        return out

    def pool(self, volume: MetaTensor) -> MetaTensor:
        """(1, X, Y, Z) in HU -> (1, *grid) in HU, with the affine of the new voxels."""
        native = volume.pixdim.tolist()
        factors = [max(1, int(target / own + 1e-3)) for target, own in zip(self.spacing, native)]
        between = [target / factor for target, factor in zip(self.spacing, factors)]
        if not np.allclose(between, native, rtol=1e-3):
            volume = Spacing(between, mode="bilinear", padding_mode="border")(volume)
        shape = [side * factor for side, factor in zip(self.grid, factors)]
        volume = ResizeWithPadOrCrop(shape, mode="constant", value=AIR_HU)(volume)
        pooled = F.avg_pool3d(volume.as_tensor()[None], factors)[0]
        affine = volume.affine.clone()
        offset = torch.tensor([(factor - 1) / 2 for factor in factors], dtype=affine.dtype)
        affine[:3, 3] += affine[:3, :3] @ offset
        affine[:3, :3] = affine[:3, :3] * torch.tensor(factors, dtype=affine.dtype)
        return MetaTensor(pooled, affine=affine)


def cache_count(cache_gb: float, grid: Sequence[int]) -> int:
    """Number of float32 volumes of this grid that fit in so many GB of host memory."""
    return int(cache_gb * 1e9 / (4 * np.prod(three(grid))))
