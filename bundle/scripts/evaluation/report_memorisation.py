"""The report's section on memorised volumes: who is near to a training volume, and pictures of the nearest pairs."""

from __future__ import annotations

from html import escape
from typing import Any, Callable, Iterable, Mapping, Sequence

import numpy as np
from monai.data import Dataset
from PIL import Image

from ..data.pictures import MEDIASTINAL_WINDOW, preview_picture
from .figures import dot_plot
from .page import as_array, data_uri, formatted
from .volume_sets import VolumeSet

NUM_WORST = 4
NUM_LISTED = 20


def memorisation_section(
    results: Mapping[str, Any],
    sets: Mapping[str, VolumeSet],
    volumes: Callable[[str], Dataset],
    size_mm: Sequence[float],
) -> str:
    """Of each generated set; empty where it was not asked for."""
    found = results["memorisation"]
    if not found:
        return ""
    against = found["against"]
    parts = [
        f"<h2>Memorised volumes</h2><p>For each generated volume the nearest of the {escape(against)} volumes, by coarse "
        "voxels (mirrored copies too) and by features. A distance is given as a share of the usual one: the median distance "
        f"between {escape(against)} volumes and the nearest other one. It tells something only if these are the volumes "
        "that the generator was trained on. A copy that is shifted, scaled or changed in part may pass.</p>"
    ]
    for name in results["distances"]:
        parts.append(_memorised_by(name, found[name], against, sets, volumes, size_mm))
    return "".join(parts)


def _memorised_by(
    name: str,
    one: Mapping[str, Any],
    against: str,
    sets: Mapping[str, VolumeSet],
    volumes: Callable[[str], Dataset],
    size_mm: Sequence[float],
) -> str:
    if "flagged" not in one:
        return f"<p>{escape(name)}: {escape(one['note'])}.</p>"
    ratios = {space: np.array(one[space]["ratio"]) for space in ("voxels", "features")}
    least = np.minimum(*ratios.values())
    flagged, total = len(one["flagged"]), len(least)
    kind = ' class="bad"' if flagged else ""
    parts = [
        f"<p><b>{escape(name)}</b>: <span{kind}>{flagged} of {total:,} volumes flagged</span>, which are nearer than "
        f"{one['threshold']:g} of the usual distance. Of the {one['num_training']:,} {escape(against)} volumes themselves, "
        f"{one['training_flagged']} would be.</p>",
        _listing(_nearest_rows(name, one, against, sets, ratios, np.argsort(least)), flagged > 0),
        '<div class="plots">',
        *(
            f"<figure>{dot_plot(_ratio_columns(name, one, against, space), 'nearest / usual distance', 0.0)}"
            f"<figcaption>Distance to the nearest {escape(against)} volume by {space}.</figcaption></figure>"
            for space in ("voxels", "features")
        ),
        "</div>",
        _worst(name, one, against, volumes, size_mm, np.argsort(least)[:NUM_WORST].tolist()),
    ]
    return "".join(parts)


def _ratio_columns(name: str, one: Mapping[str, Any], against: str, space: str) -> dict[str, list[float]]:
    return {against: one[space]["training_ratio"], name: one[space]["ratio"]}


def _nearest_rows(
    name: str,
    one: Mapping[str, Any],
    against: str,
    sets: Mapping[str, VolumeSet],
    ratios: Mapping[str, np.ndarray],
    order: Iterable[int],
) -> list[list[str]]:
    rows = []
    for index in list(order)[:NUM_LISTED]:
        space = min(ratios, key=lambda key: ratios[key][index])
        flag = '<span class="bad">near copy</span>' if index in one["flagged"] else ""
        mirrored = " (mirrored)" if one[space]["mirrored"][index] else ""
        rows.append(
            [
                escape(sets[name].label(index)),
                escape(sets[against].label(one[space]["nearest"][index])) + mirrored,
                formatted(float(ratios["voxels"][index])),
                formatted(float(ratios["features"][index])),
                flag,
            ]
        )
    return rows


def _listing(rows: Sequence[Sequence[str]], is_open: bool) -> str:
    head = "".join(f"<th>{text}</th>" for text in ("volume", "nearest", "by voxels", "by features", ""))
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<details{' open' if is_open else ''}><summary>The {len(rows)} nearest</summary><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></details>"


def _worst(
    name: str,
    one: Mapping[str, Any],
    against: str,
    volumes: Callable[[str], Dataset],
    size_mm: Sequence[float],
    order: Sequence[int],
) -> str:
    """Rows of a generated volume (left) and the nearest one (right), which is mirrored if so it is nearer."""
    generated, training = volumes(name), volumes(against)
    rows = []
    for index in map(int, order):
        space = min(("voxels", "features"), key=lambda key: one[key]["ratio"][index])
        other = as_array(training, one[space]["nearest"][index])
        pair = [as_array(generated, index), other[::-1] if one[space]["mirrored"][index] else other]
        rows.append(np.hstack([np.asarray(preview_picture([v], size_mm, 170, [MEDIASTINAL_WINDOW])) for v in pair]))
    image = f'<img src="{data_uri(Image.fromarray(np.vstack(rows)))}" alt="nearest pairs of {escape(name)}">'
    return (
        '<figure class="slices"><div class="columns" style="grid-template-columns: 1fr 1fr">'
        f"<span>{escape(name)}, nearest first</span><span>the nearest of {escape(against)}</span></div>{image}</figure>"
    )
