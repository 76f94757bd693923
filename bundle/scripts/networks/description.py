"""The JSON beside weights: where it is, what it must hold, and whether weights may be replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..data.intensity import HU, PAPER_COMPAT
from ..files import PathLike


def _ascending(window: list[float]) -> list[float]:
    if window[0] >= window[1]:
        raise ValueError("the lower number comes first")
    return window


_Side = Annotated[int, Field(ge=1, le=100_000)]
_Length = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
_Value = Annotated[float, Field(ge=-1e6, le=1e6)]


class _Data(BaseModel):
    """What the network sees of a volume."""

    grid: Union[_Side, Annotated[list[_Side], Field(min_length=3, max_length=3)]]
    field_of_view_mm: Union[_Length, Annotated[list[_Length], Field(min_length=3, max_length=3)]]
    hu_window: Annotated[list[_Value], Field(min_length=2, max_length=2), AfterValidator(_ascending)]
    intensity: Literal[HU, PAPER_COMPAT] = HU  # type: ignore[valid-type]


class _Description(BaseModel):
    model_config = ConfigDict(strict=True)
    sha256: str
    network: dict[str, Any]
    process: dict[str, Any] = {}
    data: Optional[_Data] = None
    guidance: dict[str, Any] = {}


def description_path(weights: PathLike) -> Path:
    """Where the JSON of weights is.

    Raises:
        ValueError: in one line, when the weights are not called .pt: those of several endings would share one JSON.
    """
    path = Path(weights)
    if path.suffix != ".pt":
        raise ValueError(f"{path} must end in .pt: what describes the weights is beside them with .json in its place")
    return path.with_suffix(".json")


def read_description(path: Path) -> dict[str, Any]:
    """The JSON beside weights, with its grid as a list.

    Raises:
        ValueError: in one line, when it is damaged or describes no weights.
    """
    try:
        content = json.loads(path.read_bytes())
        _Description.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][:2])
        what = f"its {where} is missing or not right" if where else "it is no table of settings"
        raise ValueError(f"{path} is not the description of a checkpoint: {what}; copy it again") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not the description of a checkpoint; copy it again") from None
    data = content.get("data")
    if data is not None and isinstance(data["grid"], int):
        data["grid"] = [data["grid"]] * 3  # as the first version stored one number
    return content


def require_free(weights: PathLike, setting: str, **made_from: Optional[str]) -> None:
    """Refuses weights in place, or a foreign JSON, unless the same command has made them from the same file.

    Args:
        weights: to be written.
        setting: that names them.
        made_from: entries that their JSON has in this case.

    Raises:
        ValueError: in one line.
    """
    path, description = Path(weights), description_path(weights)
    there = next((one for one in (path, description) if one.exists()), None)
    if there is None:
        return
    try:
        before = json.loads(description.read_bytes())
        if all(before.get(name) == value for name, value in made_from.items()):
            return
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{there} exists already and was not made from this file; choose another {setting}")
