"""Plots and pictures of a reader study: ROC curves, intervals, marked slices."""

from __future__ import annotations

from html import escape
from typing import Any, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from ..data.pictures import slice_picture
from ..evaluation.figures import COLOURS, REAL_COLOUR, Axis

SIDE, LEFT, TOP, BOTTOM, RIGHT = 380, 52, 12, 46, 14
ROW = 30  # pixels of a line of intervals
LABEL = 150  # pixels for the names of readers
_MARK = (255, 196, 0)


def roc_plot(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], pooled: str) -> str:
    """ROC curves {name: (1 - specificity, sensitivity)} in a square; that called `pooled` is dark and thick."""
    x, y = Axis(0, 1, LEFT, SIDE - RIGHT), Axis(0, 1, SIDE - BOTTOM, TOP)
    parts = []
    for value in (0, 0.2, 0.4, 0.6, 0.8, 1):
        parts.append(f'<line x1="{x(0)}" x2="{x(1)}" y1="{y(value):.1f}" y2="{y(value):.1f}" class="grid"/>')
        parts.append(f'<text x="{x(0) - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
        parts.append(f'<text x="{x(value):.1f}" y="{y(0) + 17}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<path d="M{x(0)} {y(1)}V{y(0)}H{x(1)}" fill="none" class="axis"/>')
    parts.append(f'<path d="M{x(0)} {y(0)}L{x(1)} {y(1)}" class="band"/>')
    for (name, (across, up)), colour in zip(curves.items(), roc_colours(list(curves), pooled).values()):
        path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in zip(across, up))
        width = 3 if name == pooled else 1.6
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
    middle = (TOP + SIDE - BOTTOM) / 2
    parts.append(f'<text x="{(LEFT + SIDE - RIGHT) / 2}" y="{SIDE - 8}" text-anchor="middle">1 − specificity</text>')
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">sensitivity</text>'
    )
    return f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img"><title>ROC curves</title>{"".join(parts)}</svg>'


def roc_colours(names: Sequence[str], pooled: str) -> dict[str, str]:
    """A colour for each reader."""
    readers = [name for name in names if name != pooled]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(readers)}
    return {name: colours.get(name, REAL_COLOUR) for name in names}


def interval_plot(rows: Mapping[str, Mapping[str, Any]], label: str, chance: float = 0.5) -> str:
    """A line for each estimate {'value', 'low', 'high'} of a share, with its interval, against chance (dashed).

    Args:
        rows: by name.
        label: of the axis.
        chance: where guessing leads.
    """
    width, bottom = 520, TOP + ROW * len(rows)
    axis = Axis(0, 1, LABEL, width - RIGHT)
    parts = []
    for value in (0, 0.25, 0.5, 0.75, 1):
        kind = "band" if value == chance else "grid"
        at = f"{axis(value):.1f}"
        parts.append(f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{bottom}" class="{kind}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>')
    for index, (name, one) in enumerate(rows.items()):
        y = TOP + ROW * (index + 0.5)
        short = name if len(name) < 20 else name[:18] + "…"
        parts.append(
            f'<text x="{LABEL - 10}" y="{y + 4}" text-anchor="end">{escape(short)}<title>{escape(name)}</title></text>'
        )
        if one["value"] is None:
            continue
        if one["low"] is not None:
            ends = f'x1="{axis(one["low"]):.1f}" x2="{axis(one["high"]):.1f}" y1="{y}" y2="{y}"'
            parts.append(f'<line {ends} stroke="{COLOURS[0]}" stroke-width="2"/>')
        parts.append(f'<circle cx="{axis(one["value"]):.1f}" cy="{y}" r="4.5" fill="{COLOURS[0]}"/>')
    parts.append(f'<path d="M{LABEL} {bottom}H{width - RIGHT}" class="axis" fill="none"/>')
    parts.append(
        f'<text x="{(LABEL + width - RIGHT) / 2}" y="{bottom + 36}" text-anchor="middle">{escape(label)}</text>'
    )
    return f'<svg viewBox="0 0 {width} {bottom + 44}" role="img"><title>{escape(label)}</title>{"".join(parts)}</svg>'


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
