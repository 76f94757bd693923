"""One CT to one volume of a prepared data set: centred on the chest, resampled once, cropped or padded."""

from __future__ import annotations

from typing import Any, Optional, Sequence

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from ..dicom import LeftOut
from ..geometry import extent, ras_affine, require_plausible
from ..hounsfield import AIR_HU, blank_warning, dense_warning, hu_problem, is_label_map
from ..intensity import HU, PAPER_COMPAT
from ..resampling import resample
from .anatomy import body_mask, box_centre, lung_mask, lung_tissue

CENTERS = ("lungs", "body", "volume")
_COARSE_MM = 4.0  # voxels in which body and lungs are looked for
FINEST_MM = 0.01  # as of DICOM's pixels; finer is a mistake of the unit
FIELD_OF_VIEW_MM = 320.0  # holds an adult chest; that of the training by default
_LITTLE_LUNG_ML = 1000.0
_BODY_WIDTH_MM = (150.0, 650.0)
_PAPER_QUANTILE = 0.999


def _millilitres(coarse_mask: np.ndarray) -> float:
    return float(coarse_mask.sum() * _COARSE_MM**3 / 1000)


def clear_surroundings(hu: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """Sets what is more than a voxel or 2 mm outside the body of a volume (X, Y, Z) to air, in place."""
    step = max(1, round(2 / min(spacing_mm)))  # the mask is as good at 2 mm, and found faster
    mask = body_mask(hu[::step, ::step, ::step], step * min(spacing_mm))
    grown = F.max_pool3d(torch.from_numpy(mask)[None, None].float(), 3, 1, 1)
    full = F.interpolate(grown, size=hu.shape, mode="nearest")[0, 0].numpy()
    hu[full < 0.5] = AIR_HU


class Preparation:
    """Turns a CT into a volume of the data set.

    Args:
        spacing: of the new voxels along x, y, z, in mm.
        size: voxels along x, y, z; None: as many as hold 320 mm.
        center: what the crop is centred on: 'lungs' (the body where little lung is found), 'body', or 'volume', the
            middle of the scan.
        remove_table: set what is outside the body to air.
        min_coverage: the scan covers at least this share of the crop along each axis.
        min_lung_ml: the scan has at least so much lung, or it is no chest; 0 takes all.
        paper_compat: the published scaling instead of HU: clip at -1000 and at the volume's own 99.9 % quantile, to
            [0, 1].

    Raises:
        ValueError: when a setting is out of range.
    """

    def __init__(
        self,
        spacing: Sequence[float],
        size: Optional[Sequence[int]],
        center: str = "lungs",
        remove_table: bool = False,
        min_coverage: float = 0.75,
        min_lung_ml: float = 500.0,
        paper_compat: bool = False,
    ) -> None:
        if center not in CENTERS:
            raise ValueError(f"center must be one of {', '.join(CENTERS)}, got '{center}'")
        if not 0 <= min_coverage <= 1:
            raise ValueError(f"min_coverage must be 0 to 1, got {min_coverage}")
        self.spacing = [float(value) for value in spacing]
        if min(self.spacing) < FINEST_MM:
            raise ValueError(f"spacing must be at least {FINEST_MM} mm, got {min(self.spacing):g}")
        self.size = [int(side) for side in size or np.ceil(np.divide(FIELD_OF_VIEW_MM, self.spacing) - 1e-6)]
        self.center, self.remove_table = center, remove_table
        self.min_coverage, self.min_lung_ml, self.paper_compat = min_coverage, min_lung_ml, paper_compat

    @property
    def intensity(self) -> str:
        return PAPER_COMPAT if self.paper_compat else HU

    def __call__(self, volume: MetaTensor) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """(1, ...) in HU, any affine -> the new volume (X, Y, Z), its affine, and facts about it.

        Raises:
            LeftOut: when it is a label map.
            ValueError: with the reason, when it is not HU, too small, too large to be true, or no chest.
        """
        require_plausible(volume.shape[1:], np.asarray(volume.affine, float))
        if is_label_map(volume.as_tensor()):
            raise LeftOut("label map")
        problem = hu_problem(volume.as_tensor())
        if problem is not None:
            raise ValueError(problem)
        facts, centre = self._look(volume)
        axes = nib.io_orientation(np.asarray(volume.affine, float))[:, 0].tolist()
        told = [dense_warning(volume.as_tensor()), blank_warning(volume.as_tensor(), axes.index(2))]
        facts["warnings"] += filter(None, told)
        affine = ras_affine(centre.tolist(), self.size, self.spacing)
        facts["coverage"] = self._coverage(volume, affine)
        hu = resample(volume, affine, self.size)[0].numpy()
        if self.remove_table:
            clear_surroundings(hu, self.spacing)
        return self._scaled(hu), affine, facts

    def _look(self, volume: MetaTensor) -> tuple[dict[str, Any], np.ndarray]:
        """Sizes of body and lungs, warnings, and the centre in mm."""
        low, high = extent(volume.shape[1:], np.asarray(volume.affine, float))
        grid = np.maximum(np.ceil((high - low) / _COARSE_MM), 1).astype(int)
        affine = ras_affine(((low + high) / 2).tolist(), grid.tolist(), [_COARSE_MM] * 3)
        steps = np.maximum(1, (_COARSE_MM / 2 / volume.pixdim.numpy()).astype(int))
        thinned = volume.as_tensor()[:, :: steps[0], :: steps[1], :: steps[2]]
        source = np.asarray(volume.affine, float) @ np.diag([*steps, 1.0])
        coarse = resample(MetaTensor(thinned, affine=source), affine, grid.tolist())[0].numpy()
        body = body_mask(coarse, _COARSE_MM)
        lungs = lung_mask(coarse, body)
        lung_ml = _millilitres(lungs)
        width_mm = float(body.any(axis=(1, 2)).sum() * _COARSE_MM)
        if lung_ml < self.min_lung_ml:
            self._require_lung(max(lung_ml, _millilitres(lung_tissue(coarse, _COARSE_MM))))
        warnings = []
        if lung_ml < _LITTLE_LUNG_ML:
            warnings.append(f"only {lung_ml:.0f} ml of lung: is this a chest?")
        if body.any() and not _BODY_WIDTH_MM[0] <= width_mm <= _BODY_WIDTH_MM[1]:
            warnings.append(f"the body is {width_mm:.0f} mm wide: is the spacing right?")
        masks = {"lungs": [lungs, body] if lung_ml >= _LITTLE_LUNG_ML else [body], "body": [body], "volume": []}
        centres = [found for mask in masks[self.center] if (found := box_centre(mask)) is not None]
        centre = affine[:3, :3] @ centres[0] + affine[:3, 3] if centres else (low + high) / 2
        return {"lung_ml": round(lung_ml), "body_width_mm": round(width_mm), "warnings": warnings}, centre

    def _require_lung(self, lung_ml: float) -> None:
        if lung_ml < self.min_lung_ml:
            raise ValueError(
                f"no chest: only {lung_ml:.0f} ml of lung, less than min_lung_ml {self.min_lung_ml:g}; 0 takes it"
            )

    def _coverage(self, volume: MetaTensor, affine: np.ndarray) -> list[float]:
        scan, crop = extent(volume.shape[1:], np.asarray(volume.affine, float)), extent(self.size, affine)
        covered = np.clip(np.minimum(scan[1], crop[1]) - np.maximum(scan[0], crop[0]), 0, None)
        shares, sides = covered / (crop[1] - crop[0]), crop[1] - crop[0]
        worst = int(shares.argmin())
        if shares[worst] < self.min_coverage:
            raise ValueError(
                f"the scan covers {covered[worst]:.0f} of {sides[worst]:.0f} mm along {'xyz'[worst]}, "
                f"less than min_coverage {self.min_coverage:g}"
            )
        return [round(float(share), 3) for share in shares]

    def _scaled(self, hu: np.ndarray) -> np.ndarray:
        if not self.paper_compat:
            return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
        high = float(np.quantile(hu, _PAPER_QUANTILE))
        return ((np.clip(hu, AIR_HU, high) - AIR_HU) / (high - AIR_HU)).astype(np.float32)
