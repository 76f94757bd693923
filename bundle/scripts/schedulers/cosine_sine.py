"""The paper's path: cosine-sine noising of (noise, signal) networks (paper Eq. 1-8)."""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor

from .path import Path, PathPoint

# the signal from the noise (A.6.3) divides by cos(theta): below this it would multiply the network's error by more than 20
SMALLEST_COS = 0.05


class CosineSine(Path):
    """x_t = cos(theta) x_0 + sin(theta) eps with theta = pi/2 t/T; the network predicts (eps, x_0).

    Times are real numbers in [0, T]; 0 is clean and T is pure noise. `prediction` 'noise' takes the noise alone from the
    network, and the signal from it (Eq. 7-8), except in the first 3 % of the times, where that is ill-conditioned.
    """

    name = "cosine_sine"
    predictions = ("noise", "signal")
    partial_predictions = ("noise",)

    @property
    def time_order(self) -> str:
        return f"falling times in (0, {self.num_train_timesteps}]"

    def position(self, t: Union[float, Tensor]) -> Union[float, Tensor]:
        return t / self.num_train_timesteps

    def time(self, u: Union[float, Tensor]) -> Union[float, Tensor]:
        return u * self.num_train_timesteps

    def weights(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        theta = 0.5 * math.pi * u
        cos, sin = theta.cos(), theta.sin()
        return cos, sin, -0.5 * math.pi * sin, 0.5 * math.pi * cos

    def position_of_ratio(self, ratio: float) -> float:
        return math.atan(ratio) / (0.5 * math.pi)

    def target(self, volumes: Tensor, noise: Tensor) -> Tensor:
        """Noise, then signal, (B, 2C, D, H, W)."""
        return torch.cat([noise, volumes], dim=1)

    def noise_and_signal(self, model_output: Tensor, sample: Tensor, point: PathPoint) -> tuple[Tensor, Tensor]:
        noise, signal = model_output.chunk(2, dim=1)
        if self.prediction == "noise" and point.alpha > SMALLEST_COS:
            signal = sample.sub(noise, alpha=point.sigma).div_(point.alpha)  # A.6.3
        return noise, signal
