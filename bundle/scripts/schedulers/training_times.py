"""At which times a network is trained."""

from __future__ import annotations

from typing import Union

import torch
from torch import Tensor

from .path import Path

TRAINING_TIMES = ("uniform", "logit_normal")


class TrainingTimes:
    """Draws network times, one from each of equal shares of their distribution: less variance than free draws.

    Args:
        path: whose times they are.
        distribution: of the positions u, 'uniform' or 'logit_normal' (Esser et al. 2024).
        power: with 'uniform', positions are v**power with v uniform; more than 1 prefers little noise.

    Raises:
        ValueError: in one line, when the power would have no effect.
    """

    def __init__(self, path: Path, distribution: str = "uniform", power: float = 1.0) -> None:
        if distribution != "uniform" and power != 1:
            raise ValueError(f"time_power {power} has no effect on training_times '{distribution}'; set it to 1")
        self.path, self.distribution, self.power = path, distribution, power

    def __call__(self, count: int, device: Union[torch.device, str] = "cpu") -> Tensor:
        """Times (count,), never of data."""
        share = (torch.randperm(count, device=device) + 1 - torch.rand(count, device=device)) / count  # in (0, 1]
        u = torch.special.ndtri(share).sigmoid() if self.distribution == "logit_normal" else share**self.power
        return torch.as_tensor(self.path.time(u))
