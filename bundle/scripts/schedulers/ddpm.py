"""The paths of DDPM (Ho et al. 2020), as the paper's rivals use them."""

from __future__ import annotations

import math
from typing import Union

import torch
from torch import Tensor

from .path import Path, PathPoint

# cosine schedule (Nichol & Dhariwal 2021): its offset, the angle there, and sqrt(1 - beta) of its largest beta, 0.9999
_OFFSET = 0.008
_START = 0.5 * math.pi * _OFFSET / (1 + _OFFSET)
_LEAST_KEPT = 0.01


class DDPM(Path):
    """x = alpha(u) x_0 + sqrt(1 - alpha(u)^2) eps, at the network's time t = T u - 1, from 0 to T - 1.

    A table of T betas is the path at u = 1/T, 2/T, ..., 1. With the solver `ddim`, eta 1 and T uniform steps sampling is
    DDPM's ancestral one, with the variance of the posterior ("fixed small").
    """

    @property
    def time_order(self) -> str:
        return f"falling times in (-1, {self.num_train_timesteps - 1}]"

    def position(self, t: Union[float, Tensor]) -> Union[float, Tensor]:
        return (t + 1) / self.num_train_timesteps

    def time(self, u: Union[float, Tensor]) -> Union[float, Tensor]:
        return u * self.num_train_timesteps - 1

    def alpha(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and its derivative by u."""
        raise NotImplementedError

    def weights(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha, alpha_slope = self.alpha(u)
        sigma = (1 - alpha**2).clamp(min=0).sqrt()
        sigma_slope = torch.where(sigma > 0, -alpha * alpha_slope / sigma, torch.zeros_like(sigma))  # infinite at data
        return alpha, sigma, alpha_slope, sigma_slope


class LinearDDPM(DDPM):
    """Betas from 1e-4 to 0.02 in 1,000 steps, in the continuous limit: alpha^2 = exp(-(0.1 u + 9.95 u^2)). The network
    predicts x_0 (WDM-3D)."""

    name = "ddpm_linear"
    predictions = ("signal",)

    def alpha(self, u: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.exp(-(0.05 * u + 4.975 * u**2))
        return alpha, -(0.05 + 9.95 * u) * alpha

    def position_of_ratio(self, ratio: float) -> float:
        exponent = 0.5 * math.log1p(ratio**2)  # -log alpha
        return (math.sqrt(0.05**2 + 4 * 4.975 * exponent) - 0.05) / (2 * 4.975)

    def target(self, volumes: Tensor, noise: Tensor) -> Tensor:
        """The volume, (B, C, D, H, W)."""
        return volumes

    def noise_and_signal(self, model_output: Tensor, sample: Tensor, point: PathPoint) -> tuple[Tensor, Tensor]:
        return point.noise_of(sample, model_output), model_output


class CosineDDPM(DDPM):
    """alpha = cos((u + s) / (1 + s) pi/2) / cos(s / (1 + s) pi/2), s = 0.008. The network predicts the noise (3D-LDM)."""

    name = "ddpm_cosine"
    predictions = ("noise",)

    def alpha(self, u: Tensor) -> tuple[Tensor, Tensor]:
        rate = 0.5 * math.pi / (1 + _OFFSET)
        least = _LEAST_KEPT * math.cos(rate * (1 - 1 / self.num_train_timesteps + _OFFSET))
        angle = rate * (u + _OFFSET)
        return angle.cos().clamp(min=least) / math.cos(_START), -rate * angle.sin() / math.cos(_START)

    def position_of_ratio(self, ratio: float) -> float:
        angle = math.acos(math.cos(_START) / math.sqrt(1 + ratio**2))
        return angle / (0.5 * math.pi) * (1 + _OFFSET) - _OFFSET

    def target(self, volumes: Tensor, noise: Tensor) -> Tensor:
        """The noise, (B, C, D, H, W)."""
        return noise

    def noise_and_signal(self, model_output: Tensor, sample: Tensor, point: PathPoint) -> tuple[Tensor, Tensor]:
        return model_output, sample.sub(model_output, alpha=point.sigma).div_(point.alpha)
