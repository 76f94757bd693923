"""Plots and pictures of a reader study: ROC curves, intervals, marked slices."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

from ..data.pictures import slice_picture
from ..pages import COLOURS, REAL_COLOUR, new_axes, shortened, styled, svg

_MARK = (255, 196, 0)
_CHANCE: dict[str, Any] = {"color": "#bbbbbb", "linewidth": 0.8, "linestyle": "--"}


@styled
def roc_plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], pooled: str) -> Markup:
    """ROC curves {name: (1 - specificity, sensitivity)} in a square; that called `pooled` is dark and thick."""
    axes = new_axes(3.8, 3.8)
    axes.plot([0, 1], [0, 1], **_CHANCE)
    for (name, curve), colour in zip(curves.items(), roc_colours(list(curves), pooled).values()):
        axes.plot(*curve, color=colour, linewidth=2.2 if name == pooled else 1.2, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="1 − specificity", ylabel="sensitivity")
    return svg(axes, "ROC curves")


def roc_colours(names: Sequence[str], pooled: str) -> dict[str, str]:
    """A colour for each reader."""
    readers = [name for name in names if name != pooled]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(readers)}
    return {name: colours.get(name, REAL_COLOUR) for name in names}


@styled
def interval_plot(rows: Mapping[str, Mapping[str, Any]], label: str, chance: float = 0.5) -> Markup:
    """A line for each estimate {'value', 'low', 'high'} of a share, with its interval, against chance (dashed).

    Args:
        rows: by name.
        label: of the axis.
        chance: where guessing leads.
    """
    axes = new_axes(5.2, 0.6 + 0.3 * len(rows), grid="x", left=0.28)
    axes.axvline(chance, **_CHANCE)
    for row, one in enumerate(rows.values()):
        if one["value"] is not None:
            axes.plot(one["value"], row, "o", color=COLOURS[0], markersize=6, clip_on=False)
        if one["low"] is not None:
            axes.hlines(row, one["low"], one["high"], colors=COLOURS[0])
    axes.set_yticks(range(len(rows)), [shortened(name, 20) for name in rows])
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel=label)
    axes.spines["left"].set_visible(False)
    return svg(axes, label)


def marked_picture(
    volume: np.ndarray,
    spacing_mm: Sequence[float],
    index: Sequence[int],
    plane: str,
    window: Sequence[float],
    pixels: int = 300,
) -> Image.Image:
    """The slice of a volume (X, Y, Z) in HU, RAS, that a mark lies on, with a ring around it."""
    picture, (across, down) = slice_picture(volume, spacing_mm, plane, index, window, pixels)
    coloured, radius = picture.convert("RGB"), pixels / 22
    box = (across - radius, down - radius, across + radius, down + radius)
    ImageDraw.Draw(coloured).ellipse(box, outline=_MARK, width=2)
    return coloured
