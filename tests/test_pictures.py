"""Pictures of volumes: what lies where, and labels that are whole."""

import runpy
import sys

import numpy as np
import pytest
from PIL import Image
from test_docs import ROOT

from scripts.data import grid_affine
from scripts.data.pictures import _GAP, _LARGE, _line, labelled_picture, preview_picture, stacked
from scripts.output.generated import save_volume

GRID, SIZE_MM = (32, 24, 40), (320.0, 240.0, 400.0)
AXES = {"L": (0, 0), "R": (0, 1), "back": (1, 0), "front": (1, 1), "feet": (2, 0), "head": (2, 1)}


def marked(*sides):
    """Air, with tissue where the outer thirds of the sides that are named meet."""
    volume = np.full(GRID, 40.0)
    for axis, end in map(AXES.get, sides):
        along = np.moveaxis(volume, axis, 0)
        third = len(along) // 3
        outside = along[:-third] if end else along[third:]
        outside[:] = -1000.0
    return volume


def brightest(picture):
    """Where the light of a picture lies: shares of its width and height."""
    values = np.asarray(picture, float)
    return [
        (values.sum(axis=1 - axis) @ np.arange(values.shape[axis])) / values.sum() / values.shape[axis]
        for axis in (1, 0)
    ]


@pytest.mark.parametrize(
    ("sides", "plane", "where"),
    [
        (["R", "front"], 0, "left top"),
        (["L", "back"], 0, "right bottom"),
        (["R", "head"], 1, "left top"),
        (["L", "feet"], 1, "right bottom"),
        (["front", "head"], 2, "left top"),
        (["back", "feet"], 2, "right bottom"),
    ],
)
def test_planes_lie_as_radiologists_look_at_them(sides, plane, where):
    picture = preview_picture([marked(*sides)], SIZE_MM, 100, [(-160, 240)])
    x, y = brightest(picture.crop((102 * plane, 0, 102 * (plane + 1), 102)))
    assert ("left" if x < 0.5 else "right", "top" if y < 0.5 else "bottom") == tuple(where.split())


def test_the_large_planes_are_those_of_the_preview_and_the_bar_is_as_long_as_it_says():
    """100 mm: 400 mm are as high as the picture."""
    volume = np.full(GRID, -160.0)  # black, so that labels are all that is light
    whole = np.asarray(labelled_picture([volume], SIZE_MM, ["seed 3"]))
    for left in (0, _LARGE + 2 + _GAP):
        large = whole[:, left : left + _LARGE + 2]
        runs = [
            max(map(len, "".join("x" if value == 255 else " " for value in row).split()), default=0) for row in large
        ]
        assert max(runs) == pytest.approx(100 / 400 * _LARGE, abs=1)
    noise = np.random.default_rng(0).integers(-160, 240, GRID).astype(float)
    whole = np.asarray(labelled_picture([noise], SIZE_MM, ["seed 3"]))
    alone = np.asarray(preview_picture([noise], SIZE_MM, _LARGE, [(-160, 240)]))
    top = whole.shape[0] - _LARGE - 2 - (26 + _GAP)  # the last line is below
    for left, plane in ((0, 1), (_LARGE + 2 + _GAP, 0)):
        mine = whole[top : top + _LARGE // 3, left + 30 : left + _LARGE - 30]
        start = plane * (_LARGE + 2)
        assert np.array_equal(mine, alone[: _LARGE // 3, start + 30 : start + _LARGE - 30])


@pytest.mark.parametrize("width", [230, 400])
def test_text_is_never_cut_off(width):
    """What is too wide is written smaller; the last letters keep a margin."""
    strip = np.asarray(_line("seed 9223372036854775807: 1024 x 1024 x 1024", width, 22))
    assert strip.shape[1] == width and strip.any() and not strip[:, -3:].any() and not strip[[0, -1]].any()


def test_a_picture_has_a_row_for_each_volume_and_a_title():
    volumes = [np.full(GRID, -1000.0)] * 3
    heights = [labelled_picture(volumes[:count], SIZE_MM, ["a"] * count).height for count in (1, 2, 3)]
    assert heights[2] - heights[1] == heights[1] - heights[0] > _LARGE
    assert labelled_picture(volumes[:1], SIZE_MM, ["a"], "title").height > heights[0]
    assert stacked([Image.new("L", (10, 5)), Image.new("L", (6, 9))], across=True).size == (16 + _GAP, 9)


def test_training_data_and_generated_volumes_side_by_side(tmp_path, monkeypatch):
    """The command in README."""
    for seed in range(3):
        volume = np.full((16, 16, 16), 40.0)
        save_volume(volume, grid_affine([16] * 3, [320.0] * 3), tmp_path / f"seed_{seed:06d}.nii.gz")
    path = tmp_path / "both.png"
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--generated_dir", str(tmp_path), "--output_path", str(path)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(ROOT / "tools" / "side_by_side.py"), run_name="__main__")
    picture, shipped = (Image.open(one) for one in (path, ROOT / "bundle" / "docs" / "side_by_side.png"))
    assert picture.size == shipped.size
    # the left half is drawn from phantoms, the same as ever
    half = (0, 0, picture.width // 2 - 10, picture.height)
    assert np.array_equal(np.asarray(picture.crop(half)), np.asarray(shipped.crop(half)))
