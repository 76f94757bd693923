"""Flow matching (PRDiT-FM, 2026): straight paths from noise to data, and a network that predicts their velocity."""

from __future__ import annotations

from typing import Union

import torch
from torch import Tensor

from .path import Path, PathPoint


class FlowMatching(Path):
    """x_tau = (1 - tau) eps + tau x_0; the network predicts the velocity x_0 - eps at the time T tau.

    The network's time runs from noise (0) to data (T), against that of the diffusion and of MONAI's `RFlowScheduler`;
    `position` and `time` are where that is told, and nothing else asks. `RFlowScheduler` is not used: it rounds sampling
    times through float16, ignores `transform_scale`, and `DiffusionInferer` steps it without generators. Its noising,
    velocity and Euler step agree with these (tests/test_flow_matching.py).
    """

    name = "flow_matching"
    predictions = ("velocity",)

    @property
    def time_order(self) -> str:
        return f"rising times in [0, {self.num_train_timesteps})"

    def position(self, t: Union[float, Tensor]) -> Union[float, Tensor]:
        return 1 - t / self.num_train_timesteps

    def time(self, u: Union[float, Tensor]) -> Union[float, Tensor]:
        return self.num_train_timesteps * (1 - u)

    def weights(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(u)
        return 1 - u, u, -one, one

    def position_of_ratio(self, ratio: float) -> float:
        return ratio / (1 + ratio)

    def target(self, volumes: Tensor, noise: Tensor) -> Tensor:
        """The velocity, (B, C, D, H, W)."""
        return volumes - noise

    def noise_and_signal(self, model_output: Tensor, sample: Tensor, point: PathPoint) -> tuple[Tensor, Tensor]:
        return sample.sub(model_output, alpha=point.alpha), sample.add(model_output, alpha=point.sigma)
