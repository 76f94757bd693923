"""Templates to pages: what they hold is escaped, and what they show of numbers and pictures looks the same everywhere."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from monai.data import Dataset
from PIL import Image

from ..words import duration

_SCRIPTS = Path(__file__).resolve().parents[1]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_SCRIPTS),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        formatted=formatted,
        minus=minus,
        data_uri=data_uri,
        duration=lambda seconds: "–" if seconds is None else duration(seconds),
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment


def render(template: str, **values: Any) -> str:
    """A page, in one file.

    Args:
        template: path below `scripts`, of an .html; it extends pages/base.html.
        values: what it shows; text is escaped, and SVG of `figures.svg` is not.
    """
    return _environment().get_template(template).render(values)


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


def minus(value: float, spec: str = "g") -> str:
    """A number with a real minus sign."""
    return f"{value:{spec}}".replace("-", "−")


def as_array(volumes: Dataset, index: int) -> np.ndarray:
    """A volume (X, Y, Z) in HU."""
    return np.asarray(torch.as_tensor(volumes[index]["image"])[0])


def data_uri(picture: Image.Image) -> str:
    """A picture as text that an HTML page can hold."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
