"""Slices of a CT as radiologists look at them."""

from __future__ import annotations

from typing import Sequence

import numpy as np
from PIL import Image

LUNG_WINDOW = (-1350.0, 150.0)  # HU
MEDIASTINAL_WINDOW = (-160.0, 240.0)  # HU
BONE_WINDOW = (-450.0, 1050.0)  # HU


def preview_picture(
    volumes: Sequence[np.ndarray],
    size_mm: Sequence[float],
    pixels: int = 224,
    windows: Sequence[tuple[float, float]] = (LUNG_WINDOW, MEDIASTINAL_WINDOW),
) -> Image.Image:
    """One row per volume (X, Y, Z) in HU, RAS: axial, coronal, sagittal in each window, lung and mediastinal ones first.

    As radiologists look at them: the patient's right on the left, anterior on top (axial) or left (sagittal).
    """
    scale = pixels / max(size_mm)
    rows = []
    for volume in volumes:
        x, y, z = (side // 2 for side in volume.shape)
        flipped = volume[::-1, ::-1, ::-1]
        planes = [(flipped[:, :, -1 - z].T, 0, 1), (flipped[:, -1 - y].T, 0, 2), (flipped[-1 - x].T, 1, 2)]
        row = []
        for window in windows:
            for plane, across, down in planes:
                shape = (round(size_mm[across] * scale), round(size_mm[down] * scale))
                row.append(_framed(_windowed(plane, window).resize(shape, Image.Resampling.BICUBIC), pixels))
        rows.append(np.hstack(row))
    return Image.fromarray(np.vstack(rows))


def _windowed(plane: np.ndarray, window: tuple[float, float]) -> Image.Image:
    low, high = window
    return Image.fromarray((255 * np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1)).astype(np.uint8))


def _framed(picture: Image.Image, pixels: int) -> np.ndarray:
    frame = Image.new("L", (pixels + 2, pixels + 2), 0)
    frame.paste(picture, ((pixels - picture.width) // 2, (pixels - picture.height) // 2))
    return np.asarray(frame)


def slice_picture(
    volume: np.ndarray,
    spacing_mm: Sequence[float],
    plane: str,
    index: Sequence[int],
    window: Sequence[float],
    pixels: int,
) -> tuple[Image.Image, tuple[float, float]]:
    """The slice of a volume (X, Y, Z) in HU, RAS, through a voxel, as `preview_picture` shows it, and where the voxel is in it.

    Args:
        volume: HU.
        spacing_mm: of its voxels along x, y, z.
        plane: 'axial', 'coronal' or 'sagittal'.
        index: (i, j, k) of the voxel.
        window: HU that are black and white.
        pixels: of the longer side of the picture.
    """
    normal, across, down = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}[plane]
    flipped = np.take(volume, index[normal], normal)[::-1, ::-1].T
    size_mm = [side * length for side, length in zip(volume.shape, spacing_mm)]
    scale = pixels / max(size_mm[across], size_mm[down])
    place = [(volume.shape[axis] - 0.5 - index[axis]) * spacing_mm[axis] * scale for axis in (across, down)]
    shape = (round(size_mm[across] * scale), round(size_mm[down] * scale))
    return _windowed(flipped, (window[0], window[1])).resize(shape, Image.Resampling.BICUBIC), (place[0], place[1])
