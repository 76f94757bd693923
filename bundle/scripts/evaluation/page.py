"""What the pages of a report are made of: style, numbers, pictures."""

from __future__ import annotations

import base64
import io
from typing import Any, Mapping

import numpy as np
import torch
from monai.data import Dataset
from PIL import Image

STYLE = """
:root { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: #1c1c1c; }
body { max-width: 1120px; margin: 2rem auto 4rem; padding: 0 1.2rem; background: #fff; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; }
p { max-width: 78ch; margin: .4rem 0; } .quiet, caption, small { color: #5a5a5a; } small { font-size: .82rem; }
table { border-collapse: collapse; margin: .8rem 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .32rem .7rem .32rem 0; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
thead th { border-bottom: 1.5px solid #777; } tbody th { font-weight: 500; }
thead th:first-child { width: 36%; } td { white-space: nowrap; } td small { white-space: normal; }
.wide { overflow-x: auto; } .overview thead th:first-child { width: auto; }
tr.group th { padding-top: .9rem; font-weight: 650; border-bottom: 1px solid #aaa; }
.notes { border-left: 4px solid #E69F00; background: #fff8e8; padding: .5rem .9rem; margin: 1rem 0; }
.notes p { margin: .25rem 0; max-width: none; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 1rem 1.4rem; }
figure { margin: 0; } figcaption { font-size: .87rem; color: #444; } svg { width: 100%; height: auto; }
svg text { font-size: 12px; fill: #333; } .grid { stroke: #ececec; } .axis { stroke: #555; }
.band { stroke: #bbb; stroke-dasharray: 3 3; }
.legend .key { margin-right: 1.2rem; } .legend .key span { display: inline-block; width: 1.6em; height: .35em;
  margin-right: .4em; vertical-align: middle; border-radius: 2px; }
.slices img { width: 100%; background: #000; display: block; } .slices { margin: .8rem 0 1.4rem; }
.columns { display: grid; grid-template-columns: repeat(3, 1fr); font-size: .82rem; color: #444; text-align: center; }
.bad { color: #a40000; font-weight: 600; } .hash { font-family: ui-monospace, monospace; font-size: .8rem; }
@media print { body { margin: 0; } figure, tr, .slices { break-inside: avoid; } }
"""


def formatted(value: float) -> str:
    """Three significant digits, whole numbers from a thousand on, a real minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    if "e" in text:
        text = f"{value:.2e}"
    return text.replace("-", "−")


def number(estimate: Mapping[str, Any]) -> str:
    """'value [low, high]' of an estimate, or why there is none."""
    if estimate["value"] is None:
        return str(estimate["note"])
    if estimate["low"] is None:
        return formatted(estimate["value"])
    return f"{formatted(estimate['value'])} [{formatted(estimate['low'])}, {formatted(estimate['high'])}]"


def minus(value: float) -> str:
    """A number with a real minus sign."""
    return f"{value:g}".replace("-", "−")


def as_array(volumes: Dataset, index: int) -> np.ndarray:
    """A volume (X, Y, Z) in HU."""
    return np.asarray(torch.as_tensor(volumes[index]["image"])[0])


def data_uri(picture: Image.Image) -> str:
    """A picture as text that an HTML page can hold."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
