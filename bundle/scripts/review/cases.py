"""The volumes of a reader study, real and generated, brought to one grid by the same steps.

What differs between two files for other reasons than their anatomy must not tell where they come from: voxel size, noise
and blur of resampling, field of view, padding, table, values beyond a window, steps between values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Sequence, Union

import numpy as np
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from ..data.geometry import three
from ..data.ingest.preparation import clear_surroundings
from ..data.training.transforms import LoadCTd, ToGridd

MIN_SIDE = 16  # voxels; less shows no anatomy
_LITTLE = 0.8  # share of what most volumes cover
_ROUNDING = 1e-3  # share of a voxel size
AXES = "xyz"


@dataclass(frozen=True)
class Steps:
    """What is done to every volume, in this order.

    Attributes:
        grid: voxels along x, y, z that it is cropped to, around its middle, and averaged to.
        spacing_mm: of these voxels.
        remove_table: what is outside the body becomes air.
        hu_window: HU are clipped to it.
        blur: standard deviation of a Gaussian that smooths it, voxels; 0 is none.
    """

    grid: list[int]
    spacing_mm: list[float]
    remove_table: bool
    hu_window: list[float]
    blur: float

    @property
    def field_of_view_mm(self) -> list[float]:
        return [side * length for side, length in zip(self.grid, self.spacing_mm)]

    @property
    def words(self) -> str:
        """For the reader."""
        low, high = (f"{value:g}".replace("-", "−") for value in self.hu_window)
        spacing = [f"{length:.3g}" for length in self.spacing_mm]
        voxel = spacing[0] if len(set(spacing)) == 1 else " × ".join(spacing)
        done = [f"brought to {' × '.join(map(str, self.grid))} voxels of {voxel} mm"]
        done += (
            ["cleared of what is more than a voxel outside the body, such as the table"] if self.remove_table else []
        )
        done += [f"clipped to {low} to {high} HU"]
        done += ["smoothed a little"] if self.blur else []
        return f"All cases were {', '.join(done[:-1])} and {done[-1]}, by the same steps."

    def __call__(self, item: dict[Any, Any]) -> np.ndarray:
        """A volume (X, Y, Z) as int16 HU in RAS; item as in `VolumeSet`."""
        volume = ToGridd("image", self.grid, self.field_of_view_mm).pool(self.load(item))
        hu = volume.as_tensor()[0].numpy()
        if self.remove_table:
            clear_surroundings(hu, self.spacing_mm)
        hu = hu.clip(*self.hu_window)
        if self.blur:
            hu = gaussian_filter(hu, self.blur, mode="nearest")
        return np.rint(hu).clip(-32768, 32767).astype(np.int16)

    def load(self, item: dict[Any, Any]) -> MetaTensor:
        """(1, X, Y, Z) in HU, RAS, on the grid of its file; a phantom on the grid of the study."""
        return LoadCTd("image", self.grid, self.field_of_view_mm, self.hu_window)(item)["image"]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Geometry:
    """What a file covers.

    Attributes:
        name: of the volume, for messages.
        spacing_mm: of its voxels along x, y, z.
        size_mm: along x, y, z.
    """

    name: str
    spacing_mm: list[float]
    size_mm: list[float]


def geometry_of(item: dict[Any, Any], name: str, hu_window: Sequence[float]) -> Geometry:
    """Reads a volume; ValueError in one line when that fails or it is not in HU."""
    volume = LoadCTd("image", [MIN_SIDE] * 3, 1.0, hu_window)(item)["image"]
    spacing = [float(length) for length in volume.pixdim]
    return Geometry(name, spacing, [side * length for side, length in zip(volume.shape[1:], spacing)])


def common_geometry(
    files: Sequence[Geometry],
    spacing: Union[None, float, Sequence[float]] = None,
    field_of_view_mm: Union[None, float, Sequence[float]] = None,
) -> tuple[list[int], list[float]]:
    """The grid and the spacing in mm that hide where a volume comes from.

    No volume is made finer than it is, which would show as blur, and none is padded.

    Args:
        files: of all volumes.
        spacing: mm; None: along each axis the largest of any file.
        field_of_view_mm: None: along each axis the smallest of any file.

    Raises:
        ValueError: in one line that names the volume that does not allow it.
    """
    coarsest = [max(files, key=lambda file: file.spacing_mm[axis]) for axis in range(3)]
    smallest = [min(files, key=lambda file: file.size_mm[axis]) for axis in range(3)]
    own_spacing = [file.spacing_mm[axis] for axis, file in enumerate(coarsest)]
    own_size = [file.size_mm[axis] for axis, file in enumerate(smallest)]
    voxel = [round(length, 4) for length in (own_spacing if spacing is None else three(spacing))]
    size = own_size if field_of_view_mm is None else three(field_of_view_mm)
    for axis, file in enumerate(coarsest):
        if voxel[axis] < own_spacing[axis] * (1 - _ROUNDING):
            raise ValueError(
                f"spacing {voxel[axis]:g} mm is finer than {file.name} is along {AXES[axis]}, {own_spacing[axis]:.4g} mm: "
                "its blur would give it away; raise spacing, or leave that volume out"
            )
    for axis, file in enumerate(smallest):
        if size[axis] > own_size[axis] + _ROUNDING * voxel[axis]:
            raise ValueError(
                f"field_of_view_mm {size[axis]:g} is more than {file.name} covers along {AXES[axis]}, "
                f"{own_size[axis]:.4g} mm: padding would give it away; lower field_of_view_mm, or leave that volume out"
            )
    grid = [int(length / side + _ROUNDING) for length, side in zip(size, voxel)]
    for axis, side in enumerate(grid):
        if side < MIN_SIDE:
            raise ValueError(
                f"the volumes have only {side} voxels of {voxel[axis]:g} mm along {AXES[axis]} in common, {MIN_SIDE} are "
                f"needed: {smallest[axis].name} covers {own_size[axis]:.4g} mm and {coarsest[axis].name} has voxels of "
                f"{own_spacing[axis]:.4g} mm; leave them out, or set spacing"
            )
    return grid, voxel


def steps_for(
    items: Sequence[dict[Any, Any]],
    names: Sequence[str],
    spacing: Union[None, float, Sequence[float]],
    field_of_view_mm: Union[None, float, Sequence[float]],
    hu_window: Sequence[float],
    remove_table: bool,
    blur: float,
) -> tuple[Steps, list[str]]:
    """The steps that bring volumes to one grid, see `common_geometry`, and what to say of them. Phantoms have any grid."""
    files = [
        geometry_of(item, name, hu_window) for item, name in zip(items, names) if not isinstance(item["image"], int)
    ]
    grid, voxel = common_geometry(files, spacing, field_of_view_mm)
    steps = Steps(grid, voxel, remove_table, list(hu_window), blur)
    return steps, [] if field_of_view_mm is not None else crop_notes(files, steps.field_of_view_mm)


def crop_notes(files: Sequence[Geometry], size_mm: Sequence[float]) -> list[str]:
    """Says which volume has made all cases much smaller than most volumes are."""
    notes = []
    for axis, size in enumerate(size_mm):
        usual = float(np.median([file.size_mm[axis] for file in files]))
        if size < _LITTLE * usual:
            name = min(files, key=lambda file: file.size_mm[axis]).name
            notes.append(
                f"all cases are cropped to {size:.0f} mm along {AXES[axis]}, where most cover {usual:.0f} mm: {name} does not"
            )
    return notes
