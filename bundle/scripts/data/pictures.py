"""Slices of a CT as radiologists look at them."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LUNG_WINDOW = (-1350.0, 150.0)  # HU
MEDIASTINAL_WINDOW = (-160.0, 240.0)  # HU
BONE_WINDOW = (-450.0, 1050.0)  # HU


WINDOWS = {"soft tissue": MEDIASTINAL_WINDOW, "lung": LUNG_WINDOW, "bone": BONE_WINDOW}
_NAMED = {**WINDOWS, "-1000 to 1000 HU": (-1000.0, 1000.0)}
_LARGE, _GAP, _TEXT, _TITLE = 448, 8, 18, 22  # pixels; the last two are heights of letters
_BARS_MM = (10, 20, 50, 100, 200)


class _View(NamedTuple):
    """A plane through the middle of a volume: axes of the picture, and what is at its left and right."""

    normal: int
    across: int
    down: int
    ends: tuple[str, str]


_VIEWS = {
    "axial": _View(2, 0, 1, ("R", "L")),
    "coronal": _View(1, 0, 2, ("R", "L")),
    "sagittal": _View(0, 1, 2, ("A", "P")),
}


def preview_picture(
    volumes: Sequence[np.ndarray],
    size_mm: Sequence[float],
    pixels: int = 224,
    windows: Sequence[tuple[float, float]] = (LUNG_WINDOW, MEDIASTINAL_WINDOW),
) -> Image.Image:
    """One row per volume (X, Y, Z) in HU, RAS: axial, coronal, sagittal in each window, lung and mediastinal ones first.

    As radiologists look at them: the patient's right on the left, anterior on top (axial) or left (sagittal).
    """
    rows = []
    for volume in volumes:
        tiles = [_tile(volume, view, window, size_mm, pixels) for window in windows for view in _VIEWS.values()]
        rows.append(np.hstack([_framed(tile, pixels) for tile in tiles]))
    return Image.fromarray(np.vstack(rows))


def labelled_picture(
    volumes: Sequence[np.ndarray], size_mm: Sequence[float], names: Sequence[str], title: str = ""
) -> Image.Image:
    """What one needs to judge volumes (X, Y, Z) in HU, RAS: a large coronal and axial plane of each, four smaller ones beside.

    Each is labelled with its plane, its window and a bar of so many mm, each volume with its name and grid.

    Args:
        volumes: of one shape.
        size_mm: of the volumes along x, y, z.
        names: of the volumes.
        title: of the whole.
    """
    small = (_LARGE - 2 * _GAP - 2 - _strip(_TEXT)) // 2  # two with their frames and lines are as high as a large one
    layout = [("coronal", "lung"), ("sagittal", "soft tissue"), ("axial", "lung"), ("sagittal", "bone")]
    rows = []
    for volume, name in zip(volumes, names):
        tiles = [plane_picture(volume, view, "soft tissue", size_mm, _LARGE) for view in ("coronal", "axial")]
        four = [plane_picture(volume, view, window, size_mm, small) for view, window in layout]
        beside = stacked([stacked(four[:2], across=True), stacked(four[2:], across=True)])
        rows.append(stacked([*tiles, beside], across=True))
        rows[-1] = stacked([_line(f"{name}: {_grid(volume.shape, size_mm)}", rows[-1].width, _TITLE), rows[-1]])
    windows = ", ".join(f"{name} {low:.0f} to {high:.0f} HU" for name, (low, high) in WINDOWS.items())
    sides = "R, L, A, P: the patient's right, left, front, back"
    width = rows[0].width
    return stacked([_line(title, width, _TITLE)] * bool(title) + rows + [_line(f"{windows}.  {sides}", width, _TEXT)])


def pair_picture(volume: np.ndarray, size_mm: Sequence[float], pixels: int) -> Image.Image:
    """A coronal and an axial plane (X, Y, Z) in HU, RAS, of a soft tissue window, labelled and side by side."""
    views = ("coronal", "axial")
    return stacked([plane_picture(volume, view, "soft tissue", size_mm, pixels) for view in views], across=True)


def stacked(pictures: Sequence[Image.Image], across: bool = False) -> Image.Image:
    """Pictures below each other, or beside each other, with a gap."""
    sizes = np.array([picture.size for picture in pictures])
    along, other = (0, 1) if across else (1, 0)
    size = [0, 0]
    size[along], size[other] = int(sizes[:, along].sum()) + _GAP * (len(pictures) - 1), int(sizes[:, other].max())
    whole, start = Image.new("L", (size[0], size[1]), 0), 0
    for picture, length in zip(pictures, sizes[:, along]):
        whole.paste(picture, (start, 0) if across else (0, start))
        start += int(length) + _GAP
    return whole


def titled(picture: Image.Image, title: str) -> Image.Image:
    """A picture with a line of text above."""
    return stacked([_line(title, picture.width, _TITLE), picture])


def _grid(shape: Sequence[int], size_mm: Sequence[float]) -> str:
    voxel = [f"{length / side:.3g}" for side, length in zip(shape, size_mm)]
    size = voxel[0] if len(set(voxel)) == 1 else " x ".join(voxel)
    return f"{' x '.join(map(str, shape))} voxels of {size} mm"


def plane_picture(volume: np.ndarray, view: str, window: str, size_mm: Sequence[float], pixels: int) -> Image.Image:
    """The middle plane of a volume (X, Y, Z) in HU, RAS, in a square below a line that says what it is."""
    picture = Image.fromarray(_framed(_tile(volume, _VIEWS[view], _NAMED[window], size_mm, pixels), pixels))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_TEXT)
    margin, middle, bottom = 8, picture.height // 2, picture.height - 12
    scale = pixels / max(size_mm)
    bar = max([mm for mm in _BARS_MM if mm * scale <= pixels / 3], default=_BARS_MM[0])
    draw.rectangle((margin - 1, bottom - 1, margin + round(bar * scale), bottom + 3), 255, outline=0)
    left, right = _VIEWS[view].ends
    for text, place, anchor in (
        (left, (margin, middle), "lm"),
        (right, (picture.width - margin, middle), "rm"),
        (f"{bar} mm", (margin, bottom - 5), "ls"),
    ):
        draw.text(place, text, 255, font, anchor=anchor, stroke_width=2, stroke_fill=0)
    return stacked([_line(f"{view}, {window}", picture.width, _TEXT), picture])


def _strip(letters: int) -> int:
    return letters + 8


def _line(text: str, width: int, letters: int) -> Image.Image:
    """Text in smaller letters where it would be wider than its place."""
    strip = Image.new("L", (width, _strip(letters)), 0)
    while letters > 8 and ImageFont.load_default(letters).getlength(text) > width - 8:
        letters -= 1
    ImageDraw.Draw(strip).text((4, strip.height // 2), text, 255, ImageFont.load_default(letters), anchor="lm")
    return strip


def _tile(
    volume: np.ndarray, view: _View, window: tuple[float, float], size_mm: Sequence[float], pixels: int
) -> Image.Image:
    """The middle plane in a window; `pixels` are those of the longest side of the volume."""
    scale, middle = pixels / max(size_mm), [side // 2 for side in volume.shape]
    plane = np.take(volume, middle[view.normal], view.normal)[::-1, ::-1].T
    shape = (round(size_mm[view.across] * scale), round(size_mm[view.down] * scale))
    return _windowed(plane, window).resize(shape, Image.Resampling.BICUBIC)


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
