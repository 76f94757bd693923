"""Plots as SVG text: lines, and one dot per volume; nothing to install and sharp at any size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Mapping, Optional, Sequence

import numpy as np

REAL_COLOUR = "#222222"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito, safe for colour blindness
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 12, 46  # margins of the axes, pixels
PIXELS_PER_LETTER = 7.0


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Dark for the real and the training volumes, then one colour per generator."""
    generated = [name for name in names if name not in ("real", "training")]
    palette = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(generated)}
    return {name: palette.get(name, REAL_COLOUR) for name in names}


@dataclass
class Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = ((math.log10(v) if self.log else v) for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values: powers of ten on a log axis, else steps of 1, 2 or 5."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first) / 6))
            return [10.0**power for power in range(first, last + 1, step)]
        rough = (self.high - self.low) / 5
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_plot(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    log_y: bool = False,
    bands: Sequence[float] = (),
) -> str:
    """Lines {name: (x, y)}; on a log axis values of 0 are gaps.

    Args:
        lines: by name.
        x_label: with its unit.
        y_label: with its unit.
        log_y: whether the y axis is logarithmic.
        bands: x of thin vertical lines.
    """
    data = {name: (np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in lines.items()}
    xs, ys = (np.concatenate([line[i] for line in data.values()]) for i in (0, 1))
    shown = ys[np.isfinite(ys) & ((ys > 0) | (not log_y))]
    x_axis = Axis(xs.min(), xs.max(), LEFT, WIDTH - RIGHT)
    y_axis = _y_axis(shown, log_y)
    parts = _frame(x_axis, y_axis, x_label, y_label)
    parts += [
        f'<line x1="{x_axis(x):.1f}" x2="{x_axis(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="band"/>'
        for x in bands
    ]
    colours = colours_of(list(data))
    for name, (x, y) in data.items():
        path = _path(x, y, x_axis, y_axis)
        thickness = 3 if colours[name] == REAL_COLOUR else 1.5  # so that the real line shows below one that equals it
        parts.append(f'<path d="{path}" fill="none" stroke="{colours[name]}" stroke-width="{thickness}"/>')
    return _svg(parts, f"{y_label} over {x_label}")


def dot_plot(values: Mapping[str, Sequence[float]], y_label: str, low: Optional[float] = None) -> str:
    """One dot per volume, a column for each name, with the median as a bar.

    Args:
        values: of the volumes, by name.
        y_label: with its unit.
        low: where the axis starts, if not at the smallest value.
    """
    data = {name: np.asarray([v for v in column if math.isfinite(v)], float) for name, column in values.items()}
    shown = np.concatenate([*data.values(), np.array([] if low is None else [low])])
    x_axis = Axis(0, len(data), LEFT, WIDTH - RIGHT)
    y_axis = _y_axis(shown if len(shown) else np.array([0.0, 1.0]), False)
    parts = _frame(x_axis, y_axis, "", y_label, x_ticks=False)
    colours = colours_of(list(data))
    spread = min(60.0, 0.6 * (WIDTH - LEFT - RIGHT) / len(data))
    for index, (name, column) in enumerate(data.items()):
        middle = x_axis(index + 0.5)
        parts += _column_label(name, len(column), middle, (WIDTH - LEFT - RIGHT) / len(data))
        for order, value in enumerate(column):
            x = middle + ((order * 0.618034) % 1 - 0.5) * spread  # evenly, so that dots do not hide one another
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y_axis(value):.1f}" r="2.6" fill="{colours[name]}" fill-opacity="0.55"/>'
            )
        if len(column):
            y = y_axis(float(np.median(column)))
            parts.append(
                f'<line x1="{middle - spread / 1.6:.1f}" x2="{middle + spread / 1.6:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{colours[name]}" stroke-width="2.5"/>'
            )
    return _svg(parts, y_label)


def _column_label(name: str, count: int, middle: float, width: float) -> list[str]:
    """The name, cut to what a column holds, and below it the number of dots."""
    room = max(4, int(width / PIXELS_PER_LETTER))
    short = name if len(name) <= room else name[: room - 1] + "…"
    return [
        f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + line}" text-anchor="middle">{text}<title>{escape(name)}</title></text>'
        for line, text in ((18, escape(short)), (34, f"N = {count}"))
    ]


def legend(names: Sequence[str]) -> str:
    """Names and colours, for all plots of a page."""
    items = [
        f'<span class="key"><span style="background:{colour}"></span>{escape(name)}</span>'
        for name, colour in colours_of(names).items()
    ]
    return f'<p class="legend">{"".join(items)}</p>'


def _y_axis(values: np.ndarray, log: bool) -> Axis:
    low, high = float(values.min()), float(values.max())
    if log:
        return Axis(low / 1.3, high * 1.3, HEIGHT - BOTTOM, TOP, True)
    room = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1
    return Axis(low - room if low else 0.0, high + room, HEIGHT - BOTTOM, TOP)


def _path(x: np.ndarray, y: np.ndarray, x_axis: Axis, y_axis: Axis) -> str:
    steps, pen_down = [], False
    for a, b in zip(x, y):
        if not math.isfinite(b) or (y_axis.log and b <= 0):
            pen_down = False
            continue
        steps.append(f"{'L' if pen_down else 'M'}{x_axis(a):.1f} {y_axis(b):.1f}")
        pen_down = True
    return "".join(steps)


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, x_ticks: bool = True) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in y_axis.ticks():
        y = y_axis(value)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(value, y_axis.log)}</text>')
    for value in x_axis.ticks() if x_ticks else []:
        x = x_axis(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" class="axis"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_tick(value, False)}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" class="axis"/>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return parts


def _tick(value: float, log: bool) -> str:
    if log:
        return f'10<tspan dy="-5" font-size="9">{round(math.log10(value))}</tspan>'
    return f"{value:.6g}".replace("-", "−")


def _svg(parts: Sequence[str], title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>' + "".join(parts) + "</svg>"
