"""The path from data to noise, and what a network predicts on it: everything that holds without a step being taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Sequence, Union

import torch
from torch import Tensor

Generators = Union[torch.Generator, Sequence[torch.Generator], None]


def draw_noise(shape: Sequence[int], generator: Generators, device: Union[torch.device, str]) -> Tensor:
    """Unit Gaussian noise in float32, (B, ...); with a sequence of generators each volume has its own."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=device)
    if len(generator) != shape[0]:
        raise ValueError(f"one generator per volume is needed: {len(generator)} generators, {shape[0]} volumes")
    return torch.stack([torch.randn(tuple(shape[1:]), generator=item, device=device) for item in generator])


@dataclass(frozen=True)
class PathPoint:
    """A position u of the path with the weights of signal and noise there, and their derivatives by u."""

    u: float
    alpha: float
    sigma: float
    alpha_slope: float
    sigma_slope: float

    def slope(self, noise: Tensor, signal: Tensor) -> Tensor:
        """dx/du, (B, C, ...)."""
        return (self.alpha_slope * signal).add_(noise, alpha=self.sigma_slope)

    def noise_of(self, sample: Tensor, signal: Tensor) -> Tensor:
        """eps that makes up a sample with this signal, (B, C, ...); at data, where there is none, anything finite."""
        return sample.sub(signal, alpha=self.alpha).div_(self.sigma or 1.0)

    @property
    def log_snr(self) -> float:
        """log(alpha / sigma), half the logarithm of the signal-to-noise ratio; infinite at both ends."""
        if self.u <= 0 or self.u >= 1:
            return math.inf if self.u <= 0 else -math.inf
        return math.log(self.alpha / self.sigma)


class Path:
    """x(u) = alpha(u) x_0 + sigma(u) eps, from data (u = 0) to noise (u = 1).

    A subclass says what alpha and sigma are, which network time belongs to a position u, and what the network predicts.

    Args:
        num_train_timesteps: T, the largest network time.
        noise_std: standard deviation of eps.
        prediction: what is taken from the network's output, one of `partial_predictions`; None is all of it.

    Raises:
        ValueError: in one line, when the network has no such prediction.
    """

    name: str
    predictions: tuple[str, ...]  # what the network gives, in the order of its output channels
    partial_predictions: tuple[str, ...] = ()  # what `prediction` may be

    def __init__(self, num_train_timesteps: int, noise_std: float, prediction: Optional[str] = None) -> None:
        if prediction is not None and prediction not in self.partial_predictions:
            choices = " or ".join(["None", *self.partial_predictions])
            raise ValueError(f"prediction must be {choices} for the process {self.name}, got '{prediction}'")
        self.num_train_timesteps, self.noise_std, self.prediction = num_train_timesteps, noise_std, prediction

    @property
    def time_order(self) -> str:
        """Of the times of a sampling run, for messages."""
        raise NotImplementedError

    def position(self, t: Union[float, Tensor]) -> Union[float, Tensor]:
        """Position u of a network time."""
        raise NotImplementedError

    def time(self, u: Union[float, Tensor]) -> Union[float, Tensor]:
        """Network time of a position u, in [0, T]."""
        raise NotImplementedError

    def weights(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma and their derivatives by u, for positions in float64."""
        raise NotImplementedError

    def position_of_ratio(self, ratio: float) -> float:
        """Position u where sigma / alpha is `ratio`."""
        raise NotImplementedError

    def target(self, volumes: Tensor, noise: Tensor) -> Tensor:
        """What the network is to predict, (B, len(predictions) C, D, H, W); it does not depend on the time."""
        raise NotImplementedError

    def noise_and_signal(self, model_output: Tensor, sample: Tensor, point: PathPoint) -> tuple[Tensor, Tensor]:
        """Predicted eps and x_0, each (B, C, D, H, W), from the network's output for a sample at a point of the path."""
        raise NotImplementedError

    def points(self, positions: Sequence[float]) -> list[PathPoint]:
        columns = (column.tolist() for column in self.weights(torch.tensor(positions, dtype=torch.float64)))
        return [PathPoint(*row) for row in zip(positions, *columns)]

    def add_noise(self, volumes: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t of the shape of the volumes (Eq. 1), for times (B,); computed in float64, cast at use."""
        u = torch.as_tensor(self.position(times.to(volumes.device).double()))
        alpha, sigma = (w.float().reshape(-1, *[1] * (volumes.ndim - 1)) for w in self.weights(u)[:2])
        return (alpha * volumes + sigma * noise).to(volumes.dtype)
