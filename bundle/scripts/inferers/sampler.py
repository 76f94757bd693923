"""From seeds to volumes in HU."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, Callable, Optional, Sequence, Union

import ignite.distributed as idist
import torch
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

from ..networks.base import DenoisingNetwork
from ..networks.guidance import Guidance, num_blocks
from ..schedulers import DiffusionProcess
from ..settings import usable_device, whole_number
from ..spaces import HUWindow, Space
from ..words import count
from .inferer import uses_bf16

# torch.compile takes 8 s and saves 9 ms of a call at 64^3 and 57 ms at 128^3 on a CPU with AMX (docs/performance.md)
COMPILE_FROM_CALLS = 1000
LARGEST_SEED = 2**63 - 1  # of a tensor of seeds


def inference_network(
    network: DenoisingNetwork,
    device: Union[str, torch.device],
    bf16: Optional[bool] = None,
    compile: Optional[bool] = False,
    num_calls: int = 0,
) -> DenoisingNetwork:
    """The network on its device, in eval mode.

    Args:
        network: with its weights.
        device: where it runs.
        bf16: weights in bfloat16; None where the hardware is faster with it.
        compile: through torch.compile: with weights frozen into the code on a CPU, as a CUDA graph on a GPU. None where
            it was measured to pay.
        num_calls: network calls of the run, which say whether compiling pays.

    Raises:
        ValueError: in one line, when the device is not there, a switch is neither True nor False, or there is no C++
            compiler to compile with.
    """
    device = usable_device(device)
    fast = uses_bf16(device, bf16)
    network = network.to(device, torch.bfloat16 if fast else torch.float32).eval().requires_grad_(False)
    if compile is None and fast and compiling_pays(device, num_calls):
        # nobody asked for it: a failure costs time, not the run
        compiled = torch._dynamo.config.patch(suppress_errors=True)(_compiled(network.predict, device))
        setattr(network, "predict", compiled)
    elif compile:
        if not _has_compiler():
            raise ValueError("compile needs a C++ compiler, for instance g++; install one or set compile to False")
        setattr(network, "predict", _compiled(network.predict, device))
    return network


def compiling_pays(device: torch.device, num_calls: int) -> bool:
    """Whether torch.compile was measured to save more than it costs: in long runs in bf16 on a CPU with AMX."""
    has_amx = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return has_amx and num_calls >= COMPILE_FROM_CALLS and _has_compiler()


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    from torch._inductor import config as inductor

    on_cpu = device.type == "cpu"
    compiled = torch.compile(function, dynamic=False, mode=None if on_cpu else "reduce-overhead")
    return inductor.patch(freezing=on_cpu)(compiled)  # PyTorch compiles at the first call


class SeedPrepareBatch(PrepareBatch):
    """A batch of seeds is the whole input of generation."""

    def __call__(self, batchdata: dict, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> tuple:
        return batchdata["seed"], None, (), {}


class SeedSampler(Inferer):
    """Samples one volume per seed; a volume depends on its seed alone, not on the batch.

    Of the volumes only the current state is kept. What depends on the time alone is computed once per run, for all
    times: 61 kB a step of PRDiT-B/4 in bf16. No step waits for the GPU; so the loop is our own:
    `DiffusionInferer.sample` copies each time to the device and waits for it.

    Args:
        scheduler: the process.
        num_inference_steps: network calls per volume, see `DiffusionProcess.set_timesteps`.
        grid: voxels of the volumes along each axis.
        space: of the network.
        num_volumes: of this process, for the progress bar; 0 shows none.
        in_channels: channels of the volumes.
        guidance: layer-skip guidance of the network, if any.
    """

    def __init__(
        self,
        scheduler: DiffusionProcess,
        num_inference_steps: int,
        grid: Sequence[int],
        space: Optional[Space] = None,
        num_volumes: int = 0,
        in_channels: int = 1,
        guidance: Optional[Guidance] = None,
    ) -> None:
        self.scheduler, self.guidance, self.grid = scheduler, guidance, list(grid)
        self.space = space or HUWindow()
        self.shape = self.space.shape(in_channels, grid)
        self.num_volumes = num_volumes
        self.bar: Optional[tqdm] = None
        self._calls: list[Callable[[Tensor], Tensor]] = []
        self._calls_of: tuple[Any, Any] = (None, None)  # the network and the times
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
        calls = self.calls(network)
        if self.bar is None:
            total = self.num_volumes * len(calls)
            self.bar = tqdm(
                total=total, unit="step", desc=f"sampling {count(self.num_volumes, 'volume')}", dynamic_ncols=True,
                disable=total == 0,
            )  # fmt: skip
        for time, call in zip(self.scheduler.timesteps, calls):
            sample = self.scheduler.step(call(sample), time, sample)[0]  # the predicted signal is not kept
            self.bar.update(len(inputs))
        if not bool(torch.isfinite(sample).all()):
            raise ValueError(f"the volumes of the seeds {inputs.tolist()} are not finite: the weights are broken")
        return self.space.decode(sample)

    @torch.no_grad()
    def calls(self, network: nn.Module) -> list[Callable[[Tensor], Tensor]]:
        """The network at each of the scheduler's times; made anew for another network or other times."""
        times = self.scheduler.timesteps
        if self._calls_of[0] is not network or self._calls_of[1] is not times:
            if isinstance(network, DenoisingNetwork):
                network.require_process(self.scheduler.num_train_timesteps)
            guided = (self.guidance.weights(self.scheduler), self.guidance.block) if self.guidance else ()
            device = next(network.parameters()).device
            self._calls = network_at_times(network, times.float().to(device), self.shape[1:], *guided)
            self._calls_of = (network, times)
        return self._calls


def network_at_times(
    network: nn.Module,
    times: Tensor,
    spatial_shape: Sequence[int],
    guidance: Optional[Sequence[float]] = None,
    skipped: int = 0,
) -> list[Callable[[Tensor], Tensor]]:
    """The network at each of the times (S,), as functions of volumes (B, C, *spatial_shape) alone.

    `guidance` and `skipped` are those of `DenoisingNetwork.at_times`; other networks have none.
    """
    if isinstance(network, DenoisingNetwork):
        return network.at_times(times, list(spatial_shape), guidance, skipped)
    if guidance is not None:
        raise ValueError(f"layer-skip guidance needs a network of this bundle, got {type(network).__name__}")
    return [partial(network, timesteps=time) for time in times.split(1)]


def seed_list(num_samples: int, seed: int) -> list[dict[str, int]]:
    """The data set of generation: one item per volume, its seed.

    Raises:
        ValueError: when num_samples is less than 1, or a seed is negative or more than PyTorch takes.
    """
    count = whole_number("num_samples", num_samples, 1)
    first = whole_number("seed", seed, 0, LARGEST_SEED - count + 1)
    return [{"seed": first + i} for i in range(count)]


def sides_of(grid: Union[None, int, Sequence[int]], trained: Sequence[int]) -> list[int]:
    """Three sides of a volume in voxels: those of the weights, of a cube, or as given; ValueError in one line."""
    sides = list(trained) if grid is None else list(grid) if isinstance(grid, (list, tuple)) else [grid] * 3
    if len(sides) != 3:
        raise ValueError(f"grid must be one or three numbers of voxels, got {grid}")
    return [whole_number("grid", side, 1) for side in sides]


def grid_of(grid: Union[None, int, Sequence[int]], trained: Sequence[int], network: DenoisingNetwork) -> list[int]:
    """The grid to sample: the one the weights were trained for, or another one that the network's strides allow.

    Raises:
        ValueError: when the strides do not divide it.
    """
    sides = sides_of(grid, trained)
    strides = network.strides()
    if any(side % stride for side in sides for stride in strides):
        raise ValueError(f"grid must be three multiples of the strides {strides}, got {sides}")
    return sides


def check_weights(settings: dict, grid: Sequence[int], allow_stage_1: bool = False) -> None:
    """Refuses weights of stage 1, unless they are wanted, and warns of a grid that the weights do not know.

    Args:
        settings: the JSON beside the weights.
        grid: to sample.
        allow_stage_1: whether volumes without anatomy are wanted.

    Raises:
        ValueError: in one line, when the network has no transformer.
    """
    if not allow_stage_1 and num_blocks(settings["network"]) == 0:
        raise ValueError(
            "these are weights of stage 1, which draw noise without anatomy: train stage 2 and sample its model.pt, or "
            "set allow_stage_1 to true"
        )
    trained = list(settings["data"]["grid"])
    if list(grid) != trained and idist.get_rank() == 0:
        print(
            f"warning: the weights know a grid of {trained} alone; do not expect anatomy at {list(grid)}, see "
            "docs/high_resolution.md for larger grids",
            file=sys.stderr,
        )
