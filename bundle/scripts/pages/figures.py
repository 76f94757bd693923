"""Plots as SVG in a page, drawn by matplotlib: the same numbers give the same bytes."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any, Literal, Optional

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REAL_COLOUR = "#222222"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito, safe for colour blindness
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own letters
    "svg.hashsalt": "prdit",  # else the names of markers are random
    "text.parse_math": False,  # users call their folders what they like
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "ytick.major.size": 0,
}
# head of the file, a style that would be the whole page's, names that other plots have too, letters, room between elements
_FOREIGN = (r"^.*?(?=<svg)", r'(?<=<svg) [^>]*(?= viewBox)|(?<=\d") xmlns[^>]*(?=>)', r"<defs>\s*<style.*?</defs>",
            r' id="[a-z]+[A-Za-z0-9.]*_\d+"', r"font-family: [^;]*;", r"\n\s*(?=<)")  # fmt: skip
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # neither a date nor the address of a schema


styled = matplotlib.rc_context(_STYLE)  # decorates what draws a plot


def new_axes(
    width: float = 5.2, height: float = 3.0, grid: Literal["x", "y"] = "y", left: Optional[float] = None
) -> Axes:
    """Empty axes of a figure of its own; `svg` makes them an element of a page.

    Args:
        width: in inches.
        height: in inches.
        grid: axis whose ticks have lines.
        left: share of the width for what stands left of the axes, so that plots below one another have one margin.
    """
    figure = Figure((width, height), layout="constrained" if left is None else None)
    axes = figure.subplots()
    if left is not None:
        figure.subplots_adjust(left=left, right=0.97, top=1, bottom=0.5 / height)
    axes.grid(axis=grid)
    return axes


def svg(axes: Axes, title: str) -> Markup:
    """The figure of some axes as an SVG element that scales with the page; the title is for those who hear it read."""
    text, figure = io.StringIO(), axes.get_figure(root=True)
    assert figure is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has letters that matplotlib lacks
        figure.savefig(text, format="svg", metadata=_NO_METADATA, transparent=True)
    drawn = text.getvalue()
    for foreign in _FOREIGN:
        drawn = re.sub(foreign, "", drawn, flags=re.DOTALL)
    return Markup(drawn.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))


def shortened(name: str, letters: int) -> str:
    """A name, cut to so many letters."""
    return name if len(name) <= letters else name[: letters - 1] + "…"
