"""From seeds to volumes in HU."""

from __future__ import annotations

from typing import Any, Optional, Sequence, Union

import torch
from monai.engines import PrepareBatch
from monai.inferers import DiffusionInferer, Inferer
from torch import Tensor, nn
from tqdm import tqdm

from ..networks.prdit import PRDiT
from ..schedulers import CosineSineScheduler
from .inferer import has_fast_bf16


def inference_network(network: PRDiT, device: torch.device, bf16: Optional[bool] = None) -> PRDiT:
    """The network on its device, in eval mode, its weights in bf16 where the hardware is faster with it."""
    fast = has_fast_bf16(device) if bf16 is None else bf16
    return network.to(device, torch.bfloat16 if fast else torch.float32).eval().requires_grad_(False)


class SeedPrepareBatch(PrepareBatch):
    """A batch of seeds is the whole input of generation."""

    def __call__(self, batchdata: dict, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> tuple:
        return batchdata["seed"], None, (), {}


class SeedSampler(Inferer):
    """Samples one volume per seed; a volume depends on its seed alone, not on the batch.

    Only the current state of the process is kept: memory does not grow with the number of steps.

    Args:
        scheduler: the process.
        num_inference_steps: network calls per volume, 1 to T.
        grid: voxels of the volumes along each axis.
        hu_window: HU of the values -1 and 1.
        num_volumes: of the whole run, for the progress bar.
        in_channels: channels of the volumes.
    """

    def __init__(
        self,
        scheduler: CosineSineScheduler,
        num_inference_steps: int,
        grid: Sequence[int],
        hu_window: Sequence[float] = (-1000.0, 1000.0),
        num_volumes: int = 0,
        in_channels: int = 1,
    ) -> None:
        self.scheduler, self.shape = scheduler, (in_channels, *grid)
        self.hu_min, self.hu_max = hu_window
        self.num_volumes = num_volumes
        self.bar: Optional[tqdm] = None
        scheduler.set_timesteps(num_inference_steps)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Seeds (B,) -> volumes (B, C, X, Y, Z) in HU, float32, within the window.

        Raises:
            ValueError: when the volumes hold values that are not numbers.
        """
        device = next(network.parameters()).device
        self.scheduler.generator = [torch.Generator(device).manual_seed(int(seed)) for seed in inputs]
        noise = self.scheduler.initial_noise((len(inputs), *self.shape), device)
        if self.bar is None:
            total = self.num_volumes * self.scheduler.num_inference_steps
            self.bar = tqdm(total=total, unit="step", desc=f"sampling {self.num_volumes} volumes", dynamic_ncols=True)

        bar = self.bar

        def counted(x: Tensor, timesteps: Tensor, context: Optional[Tensor] = None) -> Tensor:
            bar.update(len(x))
            return network(x, timesteps, context)

        sample = DiffusionInferer(self.scheduler).sample(noise, counted, verbose=False)
        if not bool(torch.isfinite(sample).all()):
            raise ValueError(f"the volumes of the seeds {inputs.tolist()} are not finite: the weights are broken")
        return (sample.clamp(-1, 1) + 1) * (0.5 * (self.hu_max - self.hu_min)) + self.hu_min


def seed_list(num_samples: int, seed: int) -> list[dict[str, int]]:
    """The data set of generation: one item per volume, its seed.

    Raises:
        ValueError: when num_samples is less than 1 or the seed is negative.
    """
    if num_samples < 1 or seed < 0:
        raise ValueError(f"num_samples must be 1 or more and seed 0 or more, got {num_samples} and {seed}")
    return [{"seed": seed + i} for i in range(num_samples)]


def grid_of(grid: Union[None, int, Sequence[int]], trained: Sequence[int], network: PRDiT) -> list[int]:
    """The grid to sample: the one the weights were trained for, or another one that the network's strides allow.

    Raises:
        ValueError: when the strides do not divide it.
    """
    sides = list(trained) if grid is None else [grid] * 3 if isinstance(grid, int) else list(grid)
    strides = [network.local.stride] + ([network.residual.stride] if network.residual is not None else [])
    if len(sides) != 3 or any(side < 1 or side % stride for side in sides for stride in strides):
        raise ValueError(f"grid must be three multiples of the strides {strides}, got {sides}")
    return sides
