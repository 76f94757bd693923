"""What the network sees of a data set: the grid and field of view that fit its volumes, and how much of it is padding."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, Optional, Sequence, Union

import ignite.distributed as idist
import nibabel as nib
import numpy as np

from ..geometry import three
from ..readers import kind_of, read_file

PHANTOM_MM = 320.0
_LONGEST_SIDE = 64  # voxels
_LOOKED_INTO = 16  # volumes of a plain folder
_ROUNDING = 1e-3  # voxels


def fit_volumes(
    datalist: dict[str, list[dict[str, Any]]],
    dataset_dir: Union[None, str, Path],
    grid: Optional[Sequence[int]],
    field_of_view_mm: Union[None, float, Sequence[float]],
    strides: Sequence[Optional[int]],
) -> dict[str, Any]:
    """The grid and the field of view to train with, where the user has not said them.

    The field of view is what the volumes of `dataset.json` cover; in a plain folder the median of what up to 16 of its
    volumes cover; 320 mm for phantoms. The grid has cubic voxels, about 64 along the longest side but none finer than those
    of the volumes, and whole strides; then the field of view follows the grid, by less than half a stride.

    Args:
        datalist: from `ct_datalist`.
        dataset_dir: of the datalist.
        grid: voxels along each axis, or None.
        field_of_view_mm: one number or three, or None.
        strides: of the network's patches; None is no stride.

    Returns:
        'grid', 'field_of_view_mm' (one number where all three are equal), 'padding', the share of the field of view
        outside of the volumes, and, None for phantoms, 'covered_mm' and 'spacing_mm' of the volumes along x, y, z.
    """
    found = _extents(datalist["training"], dataset_dir)
    extents, spacings = (None, None) if found is None else (found[:, 0], found[:, 1])
    typical = [PHANTOM_MM] * 3 if extents is None else np.median(extents, axis=0).tolist()
    spacing = None if spacings is None else np.median(spacings, axis=0).tolist()
    size = three(typical if field_of_view_mm is None else field_of_view_mm)
    if grid is None:
        step = math.lcm(*(stride for stride in strides if stride))
        most = _LONGEST_SIDE if spacing is None else min(_LONGEST_SIDE, int(max(size) / max(spacing) + _ROUNDING))
        voxel = max(size) / max(step, most // step * step)
        grid = [step * max(1, round(length / voxel / step)) for length in size]
        size = [side * voxel for side in grid] if field_of_view_mm is None else size
    size = [round(length, 3) for length in size]
    covered = size if extents is None else np.minimum(extents, size)
    return {
        "grid": list(grid),
        "field_of_view_mm": size[0] if len(set(size)) == 1 else size,
        "covered_mm": None if extents is None else [round(length, 1) for length in typical],
        "spacing_mm": spacing,
        "padding": 1 - float((np.asarray(covered) / size).prod(axis=-1).mean()),
    }


def _extents(items: list[dict[str, Any]], dataset_dir: Union[None, str, Path]) -> Optional[np.ndarray]:
    """Sizes of volumes and of their voxels in mm along x, y, z, (N, 2, 3); None for phantoms or where no volume says it."""
    if dataset_dir is None:
        return None
    file = Path(dataset_dir) / "dataset.json"
    content = json.loads(file.read_text()) if file.is_file() else {}
    if {"size", "spacing_mm"} <= content.keys():
        spacing = three(content["spacing_mm"])
        return np.array([[np.multiply(three(content["size"]), spacing), spacing]])
    found = [_extent(item) for item in items[:: len(items) // _LOOKED_INTO + 1]]
    known = [extent for extent in found if extent is not None]
    return np.stack(known) if known else None


def _extent(item: dict[str, Any]) -> Optional[np.ndarray]:
    """Sizes of one volume and of its voxels, (2, 3); None where it cannot be read, which loading tells in its own words."""
    try:
        if "series" in item:
            series = item["series"]
            shape, affine = (len(series.slices), *series.slices[0].shape), series.affine
        elif kind_of(item["image"]) == "NIfTI":
            image: Any = nib.load(item["image"])
            shape, affine = image.shape[:3], image.affine
        else:
            volume = read_file(item["image"])
            shape, affine = tuple(volume.shape[1:]), np.asarray(volume.affine)
        axes = nib.io_orientation(affine)[:, 0].astype(int)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        return np.stack([spacing * shape, spacing])[:, np.argsort(axes)]
    except Exception:  # readers raise whatever they like on a broken file
        return None


def require_little_padding(seen: dict[str, Any], max_padding: float) -> None:
    """Says what the network sees; ValueError in one line where too much of it lies outside of the volumes.

    Warns of a grid that is finer than the volumes, which adds work and no detail.

    Args:
        seen: from `fit_volumes`.
        max_padding: share of the field of view.
    """
    size = three(seen["field_of_view_mm"])
    voxel = [f"{length / side:.4g}" for length, side in zip(size, seen["grid"])]
    what = f"{_times(size)} mm in {_times(seen['grid'])} voxels of {voxel[0] if len(set(voxel)) == 1 else ' x '.join(voxel)} mm"
    covered = seen["covered_mm"]
    if seen["padding"] > max_padding:
        advice = f"set --field_of_view_mm \"[{','.join(f'{length:g}' for length in covered)}]\""
        if np.all(np.asarray(covered) >= 0.9 * np.asarray(size)):  # of most volumes, but not of all
            advice = "they differ much in size, and preprocess.yaml makes them equal"
        raise ValueError(
            f"the network would see {what}, but the volumes cover {_times(covered)} mm: {seen['padding']:.0%} of it would be "
            f"padding; {advice}, or raise max_padding"
        )
    if idist.get_rank() > 0:
        return
    print(f"the network sees {what}" + ("" if covered is None else f"; {seen['padding']:.0%} of it is padding"))
    fits = [int(length / one + _ROUNDING) for length, one in zip(size, seen["spacing_mm"] or [])]
    if any(side > most for side, most in zip(seen["grid"], fits)):
        print(
            f"warning: the grid is finer than the volumes, which have {_times(fits)} voxels there: that takes time and "
            "memory, and adds no detail; give a smaller grid, or prepare the data with a smaller spacing",
            file=sys.stderr,
        )


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
