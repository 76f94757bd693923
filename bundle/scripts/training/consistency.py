"""What makes trained weights draw a volume in a few network calls."""

from __future__ import annotations

import math
from typing import Any, Mapping, Sequence

import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor, nn

from ..inferers.inferer import autocast
from ..schedulers import DiffusionProcess
from ..spaces import Space
from .objectives import Denoising, Terms

_ROUNDED = 0.00054  # of the distance: below it, it is squared (pseudo-Huber, Song & Dhariwal 2024)


def edge(share: Tensor) -> Tensor:
    """Position on the path, 0 at the data and 1 at the noise, of the border that has this share of the intervals below it.

    Intervals are short at both ends. Those at the noise decide the largest structures: with 32 equal ones a single call keeps
    0.41 of the deviation of the phantoms' largest component (44 times the noise's), with these 0.80. Those at the data
    decide fine detail: of a component of 0.05 equal ones keep 0.67, these 0.86 (exact, for Gaussian data).
    """
    return (1 - torch.cos(math.pi * share)) / 2


class Consistency(Denoising):
    """Easy consistency tuning (Geng et al. 2025): the signal that the network predicts is to be the same all along the way
    from noise to data, and at the data what is there. No teacher is called; trained weights are the start alone.

    The path is cut into N intervals, see `edge`, more of them as the run goes on. At the noisy end of one the prediction is
    drawn to that of the average at its other end, with the same volume and noise; at the data that is the volume. All intervals
    are drawn equally often where times are uniform, and their distances (root mean square) count equally. The other half of a
    batch is denoised as ever, which keeps the weights where they are good.

    Args:
        network: trained weights.
        process: whose prediction holds the signal.
        space: of the network.
        average: of the network, see `AveragedWeights`.
        intervals: N, in equal parts of the run.
        anchor_weight: of the denoising; 0 is consistency alone, of the whole batch.
        others: see `Denoising`.
    """

    def __init__(
        self,
        network: nn.Module,
        process: DiffusionProcess,
        space: Space,
        average: nn.Module,
        intervals: Sequence[int] = (8, 16, 32),
        anchor_weight: float = 1.0,
        **others: Any,
    ) -> None:
        super().__init__(network, process, space, **others)
        self.averages = (average,)  # no part of what is trained
        self.intervals, self.anchor_weight, self.progress = list(intervals), anchor_weight, 0.0
        self.terms = (*process.predictions, "consistency")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.follow)

    def follow(self, engine: Engine) -> None:
        """Takes over how much of the run is done; a function of the step alone, so it needs no state."""
        state = engine.state
        self.progress = (state.iteration - 1) / (state.max_epochs * state.epoch_length)

    def forward(self, batch: Mapping[str, Any]) -> Terms:
        volumes = self.space.encode(batch[Keys.IMAGE])
        noise, times = self.process.sample_noise(volumes), self.process.sample_timesteps(len(volumes))
        total = len(volumes)
        # of consistency, and where those to denoise begin; a volume alone is in both halves
        count, half = (max(1, total // 2), total // 2) if self.anchor_weight else (total, total)
        parts = self.intervals[min(int(self.progress * len(self.intervals)), len(self.intervals) - 1)]
        shares = torch.as_tensor(self.process.path.position(times[:count].double()))
        ends = (shares * parts).ceil().clamp(1, parts)  # (count,), the interval from end - 1 to end
        positions = edge(ends / parts)
        there = torch.as_tensor(self.process.path.time(positions)).float()
        volumes, noise = (torch.cat([one[:count], one[half:]]) for one in (volumes, noise))
        times = torch.cat([there, times[half:]]).to(volumes.device, non_blocking=True)
        noisy = self.process.add_noise(volumes, noise, times)
        output = self.denoise(noisy, times)
        goal = self.goal(volumes[:count], noise[:count], ends, parts)
        squares = (self.signal(output[:count], noisy[:count], positions) - goal).square().mean((1, 2, 3, 4))
        distance = ((squares + _ROUNDED**2).sqrt() - _ROUNDED).mean()
        anchor = dict.fromkeys(self.process.predictions, distance.new_zeros(()))
        if half < total:
            found = self.named(output[count:], self.process.get_target(volumes[count:], noise[count:]))
            anchor = {name: self.anchor_weight * one for name, one in found.items()}
        return {**anchor, "consistency": distance * parts / (0.5 * math.pi)}  # over the mean length of an interval

    @torch.no_grad()
    def goal(self, volumes: Tensor, noise: Tensor, ends: Tensor, parts: int) -> Tensor:
        """The signal that the average predicts at the other end of the intervals, (B, C, D, H, W)."""
        starts = edge((ends - 1) / parts)
        times = torch.as_tensor(self.process.path.time(starts)).float().to(volumes.device, non_blocking=True)
        noisy = self.process.add_noise(volumes, noise, times)
        with autocast(noisy.device, self.bf16):
            output = self.averages[0](noisy, times).float()
        known = (starts == 0).to(volumes.device, non_blocking=True).reshape(-1, 1, 1, 1, 1)
        return torch.where(known, volumes, self.signal(output, noisy, starts))

    def signal(self, output: Tensor, noisy: Tensor, positions: Tensor) -> Tensor:
        """The signal in the network's output (B, ...) for noisy volumes at positions (B,) of the path."""
        parts = zip(output.split(1), noisy.split(1), self.process.path.points(positions.tolist()))
        return torch.cat([self.process.path.noise_and_signal(*part)[1] for part in parts])
