"""Settings that a user types: what is not of the right kind is refused in one line that names it."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Optional, Union

if TYPE_CHECKING:
    import torch


def whole_number(setting: str, value: object, least: int, most: Optional[int] = None) -> int:
    """A whole number from `least` to `most`; ValueError in one line otherwise."""
    valid = isinstance(value, int) and not isinstance(value, bool)
    if valid and value >= least and (most is None or value <= most):  # type: ignore[operator]
        return value  # type: ignore[return-value]
    bound = f"{least} or more" if most is None else f"{least} to {most}"
    raise ValueError(f"{setting} must be {bound}, a whole number, got {value!r}")


def require_numbers(least: float, most: Optional[float] = None, **values: object) -> None:
    """Refuses settings that are no finite numbers from `least` to `most`."""
    for setting, value in values.items():
        valid = isinstance(value, Real) and math.isfinite(value)
        if not valid or value < least or (most is not None and value > most):  # type: ignore[operator]
            raise ValueError(
                f"{setting} must be {least} " + ("or more" if most is None else f"to {most}") + f", got {value}"
            )


def usable_device(device: Union[str, torch.device]) -> torch.device:
    """The device, which this machine has; ValueError in one line otherwise."""
    import torch  # help and most checks do without it

    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError):
        raise ValueError(f"device must be one that PyTorch has here, for instance cpu, got {device}") from None
    return found
