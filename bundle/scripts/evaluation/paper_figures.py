"""Panels of the paper's figures: rows of models, columns of planes and volumes, drawn from the same seeds."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np
import torch
from monai.transforms import Compose
from PIL import Image

from ..data import LoadCTd, ToGridd
from ..data.pictures import plane_picture, stacked, titled
from ..inferers.parts import denoised_parts
from ..networks.card import read_card
from ..networks.checkpoint import load_network
from ..schedulers import build_scheduler
from .models import PAPER, REAL, PaperSampler, Place
from .volume_sets import VolumeSet, common_grid, generated_sets, real_set

PIXELS = 224
WINDOW = "-1000 to 1000 HU"
LEVELS = (0.9, 0.7, 0.5, 0.3, 0.1)  # positions on the path of Figure 15, 1 is noise


def draw_figure(number: int, place: Place, sampler: PaperSampler, evaluating: Mapping[str, Any]) -> Image.Image:
    """A figure of one data set.

    Args:
        number: of the figure.
        place: the data set, with a model of some row.
        sampler: of weights; as many volumes are drawn as the figure has columns.
        evaluating: settings of evaluate.yaml: 'grid', 'field_of_view_mm', 'hu_window', 'device'.

    Raises:
        ValueError: in one line, when volumes cannot be read or have several grids.
    """
    figure = PAPER["figures"][number]
    title = f"Figure {number}: {figure['title']}, " + (place.name if place.real_dir else f"phantoms for {place.name}")
    if "parts" in figure:
        return titled(_parts(place, figure, torch.device(evaluating["device"])), title)
    models, count = place.found(figure["rows"]), figure["volumes"]
    folders = {row: sampler.folders(place, figure["rows"][row], model, 1)[0] for row, model in models.items()}
    sets: dict[str, VolumeSet] = {one.name: one for one in generated_sets(None, folders, count)}
    seen = common_grid(sets, evaluating["grid"], evaluating["field_of_view_mm"])
    for row in (row for row, spec in figure["rows"].items() if spec["model"] == REAL):
        sets[row] = real_set(place.real_dir, "all", count, count)
    rows = []
    for row in (row for row in figure["rows"] if row in sets):
        volumes = _volumes(sets[row], seen, evaluating["hu_window"])
        tiles = [
            plane_picture(volume, plane, WINDOW, seen["field_of_view_mm"], PIXELS)
            for plane in figure["planes"]
            for volume in volumes
        ]
        rows.append(titled(stacked(tiles, across=True), row))
    return titled(stacked(rows), title)


def _volumes(one: VolumeSet, seen: Mapping[str, Sequence[Any]], hu_window: Sequence[float]) -> list[np.ndarray]:
    """(X, Y, Z) in HU on a common grid."""
    given = {"grid": seen["grid"], "field_of_view_mm": seen["field_of_view_mm"]}
    load = Compose([LoadCTd("image", **given, hu_window=hu_window), ToGridd("image", **given)])
    return [load(item)["image"][0].numpy() for item in one.inputs]


def _parts(place: Place, figure: Mapping[str, Any], device: torch.device) -> Image.Image:
    """Figure 15: a volume with more and less noise, and what the two branches make of each."""
    (row, model), *_ = place.found(figure["rows"]).items()
    if model.weights is None:
        raise ValueError(f"figure 15 needs the weights of {row}: {place.how_to_make(figure['rows'][row]['model'])}")
    card = read_card(model.weights, required=["data"])
    assert card.data is not None
    seen: dict[str, list] = {"grid": card.data.grid, "field_of_view_mm": card.data.sizes_mm}
    (volume,) = _volumes(real_set(place.real_dir, "all", 1, 1), seen, card.data.hu_window)
    hu = torch.from_numpy(np.ascontiguousarray(volume))[None, None].to(device)
    network, scheduler = load_network(card).to(device).eval(), build_scheduler(process=card.process)
    columns = []
    for level in LEVELS:
        noisy, signal, local = denoised_parts(network, scheduler, card.data.space, hu, level)
        grey = signal - local + sum(card.data.hu_window) / 2  # a residual of 0 is the middle of the window
        names = {f"t = {card.num_train_timesteps * level:g}": noisy, "local": local, "residual": grey, "both": signal}
        tiles = [
            titled(plane_picture(part[0, 0].cpu().numpy(), "coronal", WINDOW, seen["field_of_view_mm"], PIXELS), name)
            for name, part in names.items()
        ]
        columns.append(stacked(tiles))
    return stacked(columns, across=True)
