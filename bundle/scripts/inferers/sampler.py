"""From seeds to volumes in HU."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Optional, Sequence, Union

import torch
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

from ..networks.base import DenoisingNetwork
from ..schedulers import DiffusionProcess
from .inferer import has_fast_bf16


def inference_network(
    network: DenoisingNetwork, device: torch.device, bf16: Optional[bool] = None, compile: bool = False
) -> DenoisingNetwork:
    """The network on its device, in eval mode.

    Args:
        network: with its weights.
        device: where it runs.
        bf16: weights in bfloat16; None where the hardware is faster with it.
        compile: through torch.compile: with weights frozen into the code on a CPU, as a CUDA graph on a GPU.

    Raises:
        ValueError: in one line, when there is no C++ compiler to compile with.
    """
    fast = has_fast_bf16(device) if bf16 is None else bf16
    network = network.to(device, torch.bfloat16 if fast else torch.float32).eval().requires_grad_(False)
    if compile:
        setattr(network, "predict", _compiled(network.predict, device))
    return network


def _compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    from torch._inductor import config as inductor
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ValueError(
            "compile needs a C++ compiler, for instance g++; install one or set compile to False"
        ) from None
    inductor.freezing = device.type == "cpu"
    return torch.compile(function, dynamic=False, mode=None if device.type == "cpu" else "reduce-overhead")


class SeedPrepareBatch(PrepareBatch):
    """A batch of seeds is the whole input of generation."""

    def __call__(self, batchdata: dict, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> tuple:
        return batchdata["seed"], None, (), {}


class SeedSampler(Inferer):
    """Samples one volume per seed; a volume depends on its seed alone, not on the batch.

    Only the current state of the process is kept: memory does not grow with the number of steps. What depends on the
    time alone is computed once per run, and no step waits for the GPU; so the loop is our own: `DiffusionInferer.sample`
    copies each time to the device and waits for it.

    Args:
        scheduler: the process.
        num_inference_steps: network calls per volume, see `DiffusionProcess.set_timesteps`.
        grid: voxels of the volumes along each axis.
        hu_window: HU of the values -1 and 1.
        num_volumes: of this process, for the progress bar; 0 shows none.
        in_channels: channels of the volumes.
    """

    def __init__(
        self,
        scheduler: DiffusionProcess,
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
        self.calls: Optional[list[Callable[[Tensor], Tensor]]] = None
        scheduler.set_timesteps(num_inference_steps)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Seeds (B,) -> volumes (B, C, X, Y, Z) in HU, float32, within the window.

        Raises:
            ValueError: when the volumes hold values that are not numbers.
        """
        device = next(network.parameters()).device
        self.scheduler.generator = [torch.Generator(device).manual_seed(int(seed)) for seed in inputs]
        sample = self.scheduler.initial_noise((len(inputs), *self.shape), device)
        if self.calls is None:
            times = self.scheduler.timesteps.float().to(device)
            self.calls = network_at_times(network, times, self.shape[1:])
        if self.bar is None:
            total = self.num_volumes * len(self.calls)
            self.bar = tqdm(
                total=total, unit="step", desc=f"sampling {self.num_volumes} volumes", dynamic_ncols=True,
                disable=total == 0,
            )  # fmt: skip
        for time, call in zip(self.scheduler.timesteps, self.calls):
            sample = self.scheduler.step(call(sample), time, sample)[0]  # the predicted signal is not kept
            self.bar.update(len(inputs))
        if not bool(torch.isfinite(sample).all()):
            raise ValueError(f"the volumes of the seeds {inputs.tolist()} are not finite: the weights are broken")
        return (sample.clamp(-1, 1) + 1) * (0.5 * (self.hu_max - self.hu_min)) + self.hu_min


def network_at_times(
    network: nn.Module, times: Tensor, spatial_shape: Sequence[int]
) -> list[Callable[[Tensor], Tensor]]:
    """The network at each of the times (S,), as functions of volumes (B, C, *spatial_shape) alone."""
    if isinstance(network, DenoisingNetwork):
        return network.at_times(times, list(spatial_shape))
    return [partial(network, timesteps=time) for time in times.split(1)]


def seed_list(num_samples: int, seed: int) -> list[dict[str, int]]:
    """The data set of generation: one item per volume, its seed.

    Raises:
        ValueError: when num_samples is less than 1 or the seed is negative.
    """
    if num_samples < 1 or seed < 0:
        raise ValueError(f"num_samples must be 1 or more and seed 0 or more, got {num_samples} and {seed}")
    return [{"seed": seed + i} for i in range(num_samples)]


def grid_of(grid: Union[None, int, Sequence[int]], trained: Sequence[int], network: DenoisingNetwork) -> list[int]:
    """The grid to sample: the one the weights were trained for, or another one that the network's strides allow.

    Raises:
        ValueError: when the strides do not divide it.
    """
    sides = list(trained) if grid is None else [grid] * 3 if isinstance(grid, int) else list(grid)
    strides = network.strides()
    if len(sides) != 3 or any(side < 1 or side % stride for side in sides for stride in strides):
        raise ValueError(f"grid must be three multiples of the strides {strides}, got {sides}")
    return sides
