"""Transforms that MONAI lacks: loading CT as HU or as a phantom, and average pooling to the training grid."""

from __future__ import annotations

from typing import Any, Hashable, Mapping, Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import MapTransform, Orientation, RandomizableTransform, ResizeWithPadOrCrop, Spacing

from ..dicom import MAX_TILT_DEGREES
from ..geometry import extent, grid_affine, ras_affine, three
from ..hounsfield import AIR_HU, check_hu
from ..intensity import HU, to_hu
from ..phantoms.phantom import chest_phantom
from ..readers import read_dicom, read_file
from ..resampling import resample


class LoadCTd(MapTransform):
    """Loads a file, a DICOM series or a phantom as (1, X, Y, Z) in HU, oriented RAS.

    Scans that are turned or sheared against the patient's axes, as by a tilted gantry, are resampled to upright voxels.
    Volumes of a paper_compat data set come as what stands for HU, see `intensity`.

    Args:
        keys: of the path (str) or the phantom's seed (int); the item's 'series' is a DICOM series.
        grid: voxels of a phantom along each axis.
        field_of_view_mm: size of a phantom.
        hu_window: of the run; volumes that were clipped to it are HU, too.

    Raises:
        ValueError: in one line naming the file, when it cannot be read or is not HU.
    """

    def __init__(
        self,
        keys: Hashable,
        grid: Sequence[int],
        field_of_view_mm: Union[float, Sequence[float]],
        hu_window: Sequence[float] = (AIR_HU, -AIR_HU),
    ) -> None:
        super().__init__(keys)
        self.grid, self.field_of_view_mm = [int(side) for side in three(grid)], three(field_of_view_mm)
        self.hu_window = hu_window

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            source = out[key]
            out[key] = self._phantom(source) if isinstance(source, int) else self._file(source, out)
        out.pop("series", None)
        return out

    def _phantom(self, seed: int) -> MetaTensor:
        volume = chest_phantom(seed, self.grid, self.field_of_view_mm)
        return MetaTensor(torch.from_numpy(volume)[None], affine=grid_affine(self.grid, self.field_of_view_mm))

    def _file(self, path: str, item: Mapping[Hashable, Any]) -> MetaTensor:
        try:
            volume = read_dicom(item["series"]) if "series" in item else read_file(path)
            values = torch.from_numpy(to_hu(volume.as_tensor().float().numpy(), str(item.get("intensity", HU))))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        volume = MetaTensor(values, affine=volume.affine)
        check_hu(volume, path, self.hu_window)
        return _upright(Orientation(axcodes="RAS", labels=None)(volume))


def _upright(volume: MetaTensor) -> MetaTensor:
    """A volume (1, X, Y, Z) in RAS order, resampled to the box around it where its axes are not the patient's."""
    affine = np.asarray(volume.affine, float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (np.diag(affine)[:3] / spacing).min() > np.cos(np.radians(MAX_TILT_DEGREES)):
        return volume
    low, high = extent(volume.shape[1:], affine)
    size = np.ceil((high - low) / spacing - 1e-3).astype(int).tolist()
    upright = ras_affine((low + high) / 2, size, spacing)
    return MetaTensor(resample(volume, upright, size), affine=upright)


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


class RandRolld(RandomizableTransform, MapTransform):
    """Rolls volumes (1, X, Y, Z) by up to half a stride along each axis, so that patches are cut at any place.

    Noise knows of no place: to roll the volume and its prediction back is to move the grid of the patches.

    Args:
        keys: of the volumes.
        stride: of the patches, in voxels.
    """

    def __init__(self, keys: Hashable, stride: int) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self)
        self.offsets = range(-(stride // 2), stride - stride // 2)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        offsets = self.R.choice(self.offsets, 3).tolist()
        for key in self.key_iterator(out):
            out[key] = out[key].roll(offsets, (1, 2, 3))
        return out


def cache_count(cache_gb: float, grid: Sequence[int]) -> int:
    """Number of float32 volumes of this grid that fit in so many GB of host memory."""
    return int(cache_gb * 1e9 / (4 * np.prod(three(grid))))
