"""What a training run says before it starts, and when it is done: time, memory, disk, weights."""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Callable, Iterator, NoReturn, Optional, Sequence, Union

import ignite.distributed as idist
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from ..hardware import CPU_ONLY, GB, PROGRAM, idle_gpu, memory_bytes, resident_bytes, tell_needs
from ..inferers.memory import LiveBytes
from ..words import count, duration
from .checkpoints import checkpoints
from .objectives import HeldOut, Objective, sum_of_terms

FEW_VOLUMES = 20  # nothing was measured about it: with so few, each is seen hundreds of times
_RANDINT, _RAND = torch.ops.aten.randint, torch.ops.aten.rand.default
_DRAWS = (_RANDINT.default, _RANDINT.low, _RANDINT.generator, _RANDINT.low_generator, torch.ops.aten.randperm.default)
_SMALL = 1.0  # seconds: a step of one volume that takes longer is not repeated with the whole batch


class TrainingStep:
    """One step of training, forward and backward, to be timed or counted before the run; it changes nothing.

    Args:
        objective: that is trained.
        grid: voxels of a volume along x, y, z.
        batch_size: volumes a step, of this process.
        device: where it runs.
        validation: what validates, a volume at a time; it can take more memory than a step.
    """

    def __init__(
        self,
        objective: Objective,
        grid: Sequence[int],
        batch_size: int,
        device: Union[str, torch.device],
        validation: Optional[Objective] = None,
    ) -> None:
        self.objective, self.validation = objective, validation
        self.grid, self.batch_size, self.device = list(grid), batch_size, torch.device(device)

    def batch(self, batch_size: int) -> dict[str, Any]:
        """Volumes of water, in HU."""
        volumes = torch.zeros(batch_size, 1, *self.grid, device=self.device)
        return {"image": volumes, "index": torch.arange(batch_size)}

    def run(self, batch: dict[str, Any]) -> None:
        """Forward and backward."""
        with torch.enable_grad():
            sum_of_terms(self.objective(batch)).backward()

    def seconds(self) -> float:
        """Of a step, from one or two of them; of a large batch, from a step of one volume."""
        with self._changing_nothing():
            self._timed(self.run, 1)  # what the first step alone has to do
            one = self._timed(self.run, 1)
            return self._timed(self.run, self.batch_size) if one < _SMALL else one * self.batch_size

    def validation_seconds(self) -> float:
        """Of a volume, from one of its times where it has several."""
        times = self.validation.num_times if isinstance(self.validation, HeldOut) else 1
        part = HeldOut(self.validation.objective, 1) if isinstance(self.validation, HeldOut) else self.validation
        with self._changing_nothing():
            return times * self._timed(torch.no_grad()(part), 1) if part is not None else 0.0

    @contextmanager
    def _changing_nothing(self) -> Iterator[None]:
        """The run then draws, counts and averages as if nothing had been before it."""
        modules = [one for one in (self.objective, self.validation) if one is not None]
        kept = [_buffers(one) for one in modules]
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            try:
                self.objective.to_dearest_steps()
                yield
            finally:
                for module, buffers in zip(modules, kept):
                    module.train()
                    module.load_state_dict(buffers, strict=False)
                for parameter in self.objective.parameters():
                    parameter.grad = None

    def _timed(self, run: Callable[[dict[str, Any]], Any], batch_size: int) -> float:
        for one in (self.objective, self.validation):
            if one is not None:
                one.eval()  # in a step, codebooks and means of batches wait for the other processes, which do not measure
        start = time.monotonic()
        run(self.batch(batch_size))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic() - start

    def validate(self, batch: dict[str, Any]) -> None:
        """Forward, beside the gradients of the last step."""
        if self.validation is not None:
            with torch.no_grad():
                self.validation(batch)

    def needs(self, batch_size: int) -> dict[str, float]:
        """'tflop' of a step, and 'gb' of tensors at the peak of training and validation, both calculated: by a step without
        numbers in its tensors."""
        flops, peak = self._counted(self.run, batch_size)  # gradients are in the peak
        gradients = sum(one.nbytes for one in self.objective.parameters() if one.requires_grad)
        peak = max(peak, gradients + self._counted(self.validate, 1)[1])
        return {"tflop": flops / 1e12, "gb": (_state_bytes(self.objective) + peak) / GB}

    def _counted(self, run: Callable[[dict[str, Any]], None], batch_size: int) -> tuple[float, float]:
        """Operations, and bytes at the peak."""
        fake, peak, batch = WithoutNumbers(allow_non_fake_inputs=True), LiveBytes(), self.batch(batch_size)
        with self._changing_nothing(), FlopCounterMode(display=False) as flops, fake, peak:
            run({**batch, "image": fake.from_tensor(batch["image"])})
        return flops.get_total_flops(), batch["image"].nbytes + peak.peak


class WithoutNumbers(FakeTensorMode):
    """Tensors have shapes alone, but for drawn whole numbers and vectors, and what is made of them: windows are cut there,
    and times become plain numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
        fake = any(isinstance(one, FakeTensor) or one.is_floating_point() and one.ndim > 1 for one in tensors)
        drawn = func in _DRAWS or func is _RAND and len(args[0]) == 1
        if drawn or tensors and not fake:
            return func(*args, **kwargs)
        return super().__torch_dispatch__(func, types, args, kwargs)


def _buffers(module: nn.Module) -> dict[str, Any]:
    """Copies of all of its state but the parameters: codebooks, means of batches, counted steps."""
    parameters = dict(module.named_parameters())
    return {name: deepcopy(one) for name, one in module.state_dict().items() if name not in parameters}


def _state_bytes(network: nn.Module) -> int:
    """What a checkpoint holds, and the memory from step to step: weights and their average, AdamW's two of those trained."""
    return sum(4 * one.numel() * (4 if one.requires_grad else 2) for one in network.parameters())


@idist.one_rank_only()
def tell_data(datalist: dict[str, list[dict[str, Any]]]) -> None:
    """Warns of a data set that is too small to learn from, or that validates on what it trains on.

    Args:
        datalist: see `scripts.data.ct_datalist`.
    """
    training, validation = ([item["image"] for item in datalist[name]] for name in ("training", "validation"))
    if set(training) & set(validation):
        print("warning: training and validation share volumes: val_loss is a training loss then", file=sys.stderr)
    if len(training) < FEW_VOLUMES:
        only = f"only {count(len(training), 'training volume')}"
        print(f"warning: {only}: the generator will repeat what it has seen", file=sys.stderr)


def require_memory(network: nn.Module, device: Union[str, torch.device]) -> None:
    """Refuses to train what the memory cannot hold, before it is full and the system ends this process, or another one.

    Args:
        network: to train.
        device: where.

    Raises:
        ValueError: in one line, when weights, average and optimiser alone are more than the memory.
    """
    needed, there = _state_bytes(network), memory_bytes(device)
    if there is not None and needed > there:
        raise ValueError(
            f"training a network of these sizes takes {needed / GB:,.0f} GB for weights, their average and the optimiser "
            f"alone, but there are {there / GB:,.0f} GB; lower hidden_size, depth or the patches"
        )


@idist.one_rank_only()
def tell_time(step: TrainingStep, length: dict[str, int], validated: int, ckpt_dir: str, name: str) -> None:
    """Prints how long the run will take by a short probe, and where the weights go; a continued run knows it soon.

    Args:
        step: of this run.
        length: see `run_length`.
        validated: volumes at each validation, of all processes.
        ckpt_dir: of the weights.
        name: of the weights.
    """
    if checkpoints(ckpt_dir, name):
        return
    if idle_gpu() and step.device.type == "cpu":
        print(f"warning: {CPU_ONLY}", file=sys.stderr)
    seconds, num_steps = step.seconds(), length["max_epochs"] * length["epoch_length"]
    validations = math.ceil(length["max_epochs"] / length["val_interval"])
    validating = duration(step.validation_seconds() * math.ceil(validated / idist.get_world_size()) * validations)
    print(
        f"about {duration(seconds * num_steps)} of steps, {seconds:.2g} s each, and {validating} of validation; -> {ckpt_dir}/"
    )


def end_plan(
    step: TrainingStep, num_steps: int, keep: int, ckpt_dir: str, datalist: dict[str, list[Any]], cache_gb: float
) -> NoReturn:
    """Prints what training needs of memory and disk, both calculated, and ends the process.

    Args:
        step: of this run.
        num_steps: of the run.
        keep: checkpoints that are kept.
        ckpt_dir: of the weights.
        datalist: volumes, 'training' and 'validation'.
        cache_gb: host memory for them, of which validation has a quarter more.
    """
    volume = 4 * math.prod(step.grid)
    cached = sum(
        min(share * cache_gb * GB, volume * len(datalist[name]))
        for name, share in (("training", 1), ("validation", 0.25))
    )
    host = {"cached volumes": cached, PROGRAM: resident_bytes()}
    needs = step.needs(step.batch_size)
    tell_needs(
        step.device,
        {"weights, optimiser and a step": needs["gb"] * GB},
        host,
        _state_bytes(step.objective) * (keep + 1) + sum(4 * one.numel() for one in step.objective.parameters()),
        ckpt_dir,
        f"{needs['tflop']:.2g} TFLOP a step, {needs['tflop'] * num_steps / 1000:.2g} PFLOP in all (calculated)",
    )
    raise SystemExit(0)


@idist.one_rank_only()
def tell_weights(ckpt_dir: Union[str, Path], name: str, keep_last: bool = False) -> None:
    """Prints where the weights are, and how they validated.

    Args:
        ckpt_dir: of the run.
        name: of the weights.
        keep_last: they are those validated last, not those validated best.
    """
    path = Path(ckpt_dir) / f"{name}.pt"
    if not path.is_file():
        return
    best = json.loads(path.with_suffix(".json").read_text()).get("training", {})
    which = "last" if keep_last else "best"
    how = (
        f"val_loss {best['val_loss']:.4f}, the {which}, after epoch {best['epoch']}"
        if "val_loss" in best
        else "weights"
    )
    picture = path.with_name(f"{name}_progress.png")
    losses = picture if picture.is_file() else path.with_name(f"{name}_losses.csv")
    print(f"{path}: {how}; losses: {losses}")
