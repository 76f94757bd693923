"""What the report says of memorised volumes: who is near to a training volume, and pictures of the nearest pairs."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Mapping, Sequence

import numpy as np
from monai.data import Dataset
from PIL import Image

from ..data.pictures import MEDIASTINAL_WINDOW, preview_picture
from ..pages import as_array
from .figures import dot_plot
from .volume_sets import VolumeSet

NUM_WORST = 4
NUM_LISTED = 20
SPACES = {"voxels": "voxels", "features": "features", "astra": "Astra"}


def memorised(
    results: Mapping[str, Any],
    sets: Mapping[str, VolumeSet],
    volumes: Callable[[str], Dataset],
    size_mm: Sequence[float],
) -> dict[str, dict[str, Any]]:
    """Counts, rows, plots and a picture of each generated set, or a note; empty where copies were not searched for."""
    found = results["memorisation"]
    return {
        name: (
            found[name]
            if "note" in found[name]
            else _nearest(name, found[name], found["against"], sets, volumes, size_mm)
        )
        for name in (results["distances"] if found else ())
    }


def _nearest(
    name: str,
    one: Mapping[str, Any],
    against: str,
    sets: Mapping[str, VolumeSet],
    volumes: Callable[[str], Dataset],
    size_mm: Sequence[float],
) -> dict[str, Any]:
    spaces = _spaces(one)
    order = np.argsort(np.min([one[space]["ratio"] for space in spaces], axis=0)).tolist()
    rows = []
    for index in order[:NUM_LISTED]:
        nearest = one[_nearer_space(one, index)]
        rows.append(
            {
                "name": sets[name].label(index),
                "nearest": sets[against].label(nearest["nearest"][index]),
                "mirrored": nearest["mirrored"][index],
                "ratios": [one[space]["ratio"][index] for space in spaces],
                "flagged": index in one["flagged"],
            }
        )
    columns = {space: {against: one[space]["training_ratio"], name: one[space]["ratio"]} for space in spaces}
    return {
        **one,
        "note": "",
        "flagged": len(one["flagged"]),
        "total": len(order),
        "rows": rows,
        "spaces": [SPACES[space] for space in spaces],
        "figures": {SPACES[space]: dot_plot(columns[space], "nearest / usual distance", 0.0) for space in spaces},
        "worst": _worst(one, volumes(name), volumes(against), size_mm, order[:NUM_WORST]),
    }


def _spaces(one: Mapping[str, Any]) -> list[str]:
    return [space for space in SPACES if space in one]


def _nearer_space(one: Mapping[str, Any], index: int) -> str:
    return min(_spaces(one), key=lambda space: one[space]["ratio"][index])


def _worst(
    one: Mapping[str, Any], generated: Dataset, training: Dataset, size_mm: Sequence[float], order: Iterable[int]
) -> Image.Image:
    """Rows of a generated volume (left) and the nearest one (right), which is mirrored if so it is nearer."""
    rows = []
    for index in order:
        nearest = one[_nearer_space(one, index)]
        other = as_array(training, nearest["nearest"][index])
        pair = [as_array(generated, index), other[::-1] if nearest["mirrored"][index] else other]
        rows.append(np.hstack([np.asarray(preview_picture([v], size_mm, 170, [MEDIASTINAL_WINDOW])) for v in pair]))
    return Image.fromarray(np.vstack(rows))
