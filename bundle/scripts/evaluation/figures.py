"""Plots of a report: lines, and one dot per volume."""

from __future__ import annotations

import math
from typing import Mapping, Optional, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..pages import COLOURS, REAL_COLOUR, new_axes, shortened, styled, svg
from .volume_sets import REFERENCE, ROLES

LETTERS = 62  # that fit below a plot
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Dark for the real and the training volumes, then one colour per generator."""
    generated = [name for name in names if name not in (*ROLES, REFERENCE)]
    palette = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(generated)}
    return {name: palette.get(name, REAL_COLOUR) for name in names}


@styled
def line_plot(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    log_y: bool = False,
    bands: Sequence[float] = (),
) -> Markup:
    """Lines {name: (x, y)}; on a log axis values of 0 are gaps.

    Args:
        lines: by name.
        x_label: with its unit.
        y_label: with its unit.
        log_y: whether the y axis is logarithmic.
        bands: x of thin vertical lines.
    """
    axes, colours = new_axes(), colours_of(list(lines))
    for place in bands:
        axes.axvline(place, color="#bbbbbb", linewidth=0.8, linestyle="--")
    for name, (x, y) in lines.items():
        heights = np.asarray(y, float)
        real = colours[name] == REAL_COLOUR  # its line is thick, so that it shows below one that equals it
        shown = np.where(heights > 0, heights, np.nan) if log_y else heights
        axes.plot(np.asarray(x, float), shown, color=colours[name], linewidth=2.2 if real else 1.1)
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(10, numticks=7))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"10{str(round(math.log10(y))).translate(_RAISED)}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", length=0)
    axes.margins(x=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    return svg(axes, f"{y_label} over {x_label}")


@styled
def dot_plot(values: Mapping[str, Sequence[float]], y_label: str, low: Optional[float] = None) -> Markup:
    """One dot per volume, a column for each name, with the median as a bar.

    Args:
        values: of the volumes, by name.
        y_label: with its unit.
        low: where the axis starts, if not at the smallest value.
    """
    axes, colours, labels = new_axes(), colours_of(list(values)), []
    spread = min(0.6, 0.12 * len(values))
    for index, (name, column) in enumerate(values.items()):
        numbers = np.asarray([value for value in column if math.isfinite(value)], float)
        labels.append(f"{shortened(name, max(4, LETTERS // len(values)))}\nN = {len(numbers)}")
        places = index + ((np.arange(len(numbers)) * 0.618034) % 1 - 0.5) * spread  # so that no dot hides another
        axes.plot(places, numbers, "o", color=colours[name], markersize=4, markeredgewidth=0, alpha=0.55, clip_on=False)
        if len(numbers):
            ends = (index - spread / 1.6, index + spread / 1.6)
            axes.hlines(np.median(numbers), *ends, colors=colours[name], linewidth=1.8)
    axes.set_xticks(range(len(values)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(-0.5, len(values) - 0.5), ylabel=y_label)
    if low is not None:
        axes.set_ylim(bottom=low)
    return svg(axes, y_label)
