"""Generators: objects that draw volumes in HU from seeds and conditions."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence

import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

from ..networks.guidance import Guidance, guided
from ..schedulers import Correct, DiffusionProcess, PathPoint
from ..settings import whole_number
from ..spaces import HUWindow, Space
from ..words import count
from .items import LARGEST_SEED


class Item(NamedTuple):
    """What makes a volume: its seed, and its conditions by name, without a batch axis."""

    seed: int
    conditions: Mapping[str, Tensor] = {}


class Generator(nn.Module):
    """Draws volumes; a volume depends on its item alone, not on the batch. Every kind of weights makes one of these."""

    space: Space
    conditions: tuple[str, ...] = ()  # that every item must have
    calls_per_volume = 1
    fitted = False  # whether its steps are those of a `Schedule`

    def __init__(self) -> None:
        super().__init__()
        self.progress: Callable[[int], Any] = lambda calls: None  # is told of the network calls that are done

    def sample(self, items: Sequence[Item], correct: Optional[Correct] = None) -> Tensor:
        """One volume per item, (B, C, X, Y, Z) in HU, float32.

        Args:
            items: B of them.
            correct: changes what is predicted at each network call, where there are several; see `DiffusionProcess.step`.

        Raises:
            ValueError: in one line, when an item lacks a condition or has another one, or a volume is not finite.
        """
        raise NotImplementedError

    def conditions_of(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """The items' conditions as batches; ValueError in one line for what is no item."""
        if not isinstance(items, (list, tuple)) or not items or not all(isinstance(item, Item) for item in items):
            raise ValueError(f"items must be a list of Item(seed, conditions), one or more, got {items!r}")
        for item in items:
            whole_number("seed", item.seed, 0, LARGEST_SEED)
            if set(item.conditions) != set(self.conditions):
                theirs, ours = (", ".join(sorted(names)) or "none" for names in (item.conditions, self.conditions))
                raise ValueError(
                    f"the weights take the conditions: {ours}; the volume of seed {item.seed} has: {theirs}"
                )
        return {
            name: torch.stack([torch.as_tensor(item.conditions[name]) for item in items]) for name in self.conditions
        }


class DiffusionGenerator(Generator):
    """Samples with a process and its solver.

    Of the volumes only the current state is kept. What depends on the time alone is computed once per run, for all
    times: 61 kB a step of PRDiT-B/4 in bf16. No step waits for the GPU; so the loop is our own:
    `DiffusionInferer.sample` copies each time to the device and waits for it.

    Args:
        network: a `DenoisingNetwork`, `Guided`, or anything with the signature of MONAI's inferers.
        scheduler: the process.
        num_inference_steps: network calls per volume, see `DiffusionProcess.set_timesteps`.
        grid: voxels of the volumes along each axis.
        space: of the network; None is HU from -1000 to 1000.
        in_channels: channels of the volumes.
        random_offset: patches are cut elsewhere at each call, as the volume's own generator says.
    """

    def __init__(
        self,
        network: Any,
        scheduler: DiffusionProcess,
        num_inference_steps: int,
        grid: Sequence[int],
        space: Optional[Space] = None,
        in_channels: int = 1,
        random_offset: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.scheduler, self.space = network, scheduler, space or HUWindow()
        self.conditions = getattr(network, "conditions", ())
        self.shape = self.space.shape(in_channels, grid)
        self.stride = max(network.strides()) if random_offset else 0
        if random_offset and self.space.encoding != "voxels":
            raise ValueError(f"random_offset is for networks of voxels, these see {self.space.encoding}; leave it out")
        if hasattr(network, "require_process"):
            network.require_process(scheduler.num_train_timesteps)
        scheduler.set_timesteps(num_inference_steps)
        self.calls_per_volume, self.fitted = num_inference_steps, scheduler.schedule is not None
        self._calls: tuple[Any, list[Callable[[Tensor], Tensor]]] = (None, [])  # of these times

    @torch.no_grad()
    def sample(self, items: Sequence[Item], correct: Optional[Correct] = None) -> Tensor:
        device = next(self.network.parameters()).device
        calls, corrected = self.calls(self.conditions_of(items)), self._within_bounds(correct)
        self.scheduler.generator = [torch.Generator(device).manual_seed(item.seed) for item in items]
        offsets = self._offsets(self.scheduler.generator, device)
        sample = self.scheduler.initial_noise((len(items), *self.shape), device)
        for i, (time, call) in enumerate(zip(self.scheduler.timesteps, calls)):
            sample = self.scheduler.step(  # neither prediction nor signal is kept
                _rolled(call(_rolled(sample, offsets, i, 1)), offsets, i, -1), time, sample, correct=corrected
            )[0]
            self.progress(len(items))
        whose = "the weights or the correction are" if correct else "the weights are"
        return self.space.decode(_finite(sample, items, whose))

    def _offsets(self, generators: Sequence[torch.Generator], device: torch.device) -> list[list[list[int]]]:
        """Of the grid of patches, along x, y, z at each call, for each volume; drawn at once, for a GPU is waited for."""
        low, shape = -(self.stride // 2), (self.calls_per_volume, 3)
        drawn = (torch.randint(low, low + self.stride, shape, generator=one, device=device) for one in generators)
        return [one.tolist() for one in drawn] if self.stride else []

    def _within_bounds(self, correct: Optional[Correct]) -> Optional[Correct]:
        """The correction, after the signal has been brought to what the space bounds it to."""
        if not self.space.bounded:
            return correct

        def bounded(signal: Tensor, noise: Tensor, x: Tensor, point: PathPoint) -> tuple[Tensor, Tensor]:
            signal = self.space.constrain(signal)
            noise = point.noise_of(x, signal)
            return correct(signal, noise, x, point) if correct else (signal, noise)

        return bounded

    @torch.no_grad()
    def calls(self, conditions: Optional[Mapping[str, Tensor]] = None) -> list[Callable[[Tensor], Tensor]]:
        """The network at each of the scheduler's times; kept for all batches, where there are no conditions."""
        times = self.scheduler.timesteps
        if conditions or self._calls[0] is not times:
            device = next(self.network.parameters()).device
            there = {name: value.to(device) for name, value in (conditions or {}).items()}
            self._calls = (None if there else times), network_at_times(
                self.network, times.float().to(device), self.shape[1:], there
            )
        return self._calls[1]


def _rolled(volumes: Tensor, offsets: list[list[list[int]]], call: int, sign: int) -> Tensor:
    """Volumes (B, C, X, Y, Z), each rolled by its own offset at a call; as they are where there are no offsets."""
    if not offsets:
        return volumes
    shifts = [[sign * voxels for voxels in of_volume[call]] for of_volume in offsets]
    return torch.stack([volume.roll(shift, (1, 2, 3)) for volume, shift in zip(volumes, shifts)])


class DirectGenerator(Generator):
    """Draws a volume in one call of a network, from as many numbers as it takes.

    Args:
        network: with `latent_size`, and `side` of its volumes.
        grid: voxels along each axis, those of the network.
        space: of the network.
        num_inference_steps: 1.

    Raises:
        ValueError: in one line, for another grid or number of steps.
    """

    def __init__(self, network: Any, grid: Sequence[int], space: Space, num_inference_steps: int = 1) -> None:
        super().__init__()
        if num_inference_steps != 1:
            raise ValueError(
                f"these weights draw a volume in one network call: set num_inference_steps to 1, got {num_inference_steps}"
            )
        if list(grid) != [network.side] * 3:
            raise ValueError(f"these weights draw a grid of {[network.side] * 3} alone, got grid {list(grid)}")
        self.network, self.space, self.shape = network, space, (network.latent_size,)

    @torch.no_grad()
    def sample(self, items: Sequence[Item], correct: Optional[Correct] = None) -> Tensor:
        self.conditions_of(items)
        device = next(self.network.parameters()).device
        generators = [torch.Generator(device).manual_seed(item.seed) for item in items]
        volumes = self.network(
            torch.stack([torch.randn(self.shape, generator=one, device=device) for one in generators])
        )
        self.progress(len(items))
        return self.space.decode(_finite(volumes, items))

    def calls(self) -> list[Callable[[Tensor], Tensor]]:
        return [self.network]


def _finite(sample: Tensor, items: Sequence[Item], whose: str = "the weights are") -> Tensor:
    if not bool(torch.isfinite(sample).all()):
        raise ValueError(f"the volumes of the seeds {[item.seed for item in items]} are not finite: {whose} broken")
    return sample


def build_generator(
    network: Any,
    scheduler: DiffusionProcess,
    num_inference_steps: int,
    grid: Sequence[int],
    space: Space,
    in_channels: int = 1,
    guidance: Optional[Guidance] = None,
    random_offset: bool = False,
) -> DiffusionGenerator | DirectGenerator:
    """What draws volumes with a network of any kind, see `DiffusionGenerator`; guidance is that of `guided`."""
    if hasattr(network, "latent_size"):
        return DirectGenerator(network, grid, space, num_inference_steps)
    sampled = guided(network, guidance, scheduler.path)
    return DiffusionGenerator(sampled, scheduler, num_inference_steps, grid, space, in_channels, random_offset)


def network_at_times(
    network: Any, times: Tensor, spatial_shape: Sequence[int], conditions: Optional[Mapping[str, Tensor]] = None
) -> list[Callable[[Tensor], Tensor]]:
    """The network at each of the times (S,), as functions of volumes (B, C, *spatial_shape) alone."""
    if hasattr(network, "at_times"):
        return network.at_times(times, list(spatial_shape), **({"conditions": conditions} if conditions else {}))
    return [partial(network, timesteps=time, **(conditions or {})) for time in times.split(1)]


class ItemPrepareBatch(PrepareBatch):
    """A batch of items is the whole input of generation: 'seed' (B,), and 'conditions' by name where there are any."""

    def __call__(self, batchdata: dict, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> tuple:
        conditions = batchdata.get("conditions", {})
        seeds = batchdata["seed"].tolist()
        items = [Item(seed, {name: value[i] for name, value in conditions.items()}) for i, seed in enumerate(seeds)]
        return items, None, (), {}


class GeneratorInferer(Inferer):
    """Lets MONAI's evaluator, whose network is a generator, sample the items of a batch."""

    def __call__(self, inputs: Any, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        return network.sample(inputs)


class SamplingProgress:
    """A bar over all network calls of a process.

    Args:
        generator: whose calls they are.
        num_volumes: of this process; 0 shows none.
    """

    def __init__(self, generator: Generator, num_volumes: int) -> None:
        self.generator, self.num_volumes = generator, num_volumes

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, lambda: self.bar.close())

    def start(self) -> None:
        total = self.num_volumes * self.generator.calls_per_volume
        what = f"sampling {count(self.num_volumes, 'volume')}"
        self.bar = tqdm(total=total, unit="step", desc=what, dynamic_ncols=True, disable=total == 0)
        self.generator.progress = self.bar.update
