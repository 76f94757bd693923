"""Ignite handlers that MONAI and Ignite lack."""

from __future__ import annotations

import math
import time
from typing import Any, Sized

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.engines import IterationEvents
from torch import nn


class GradientGuard:
    """Clips the gradient's norm, and leaves out a step whose gradient is not finite.

    Under DistributedDataParallel the gradients, and so the decision, are the same on every rank. A fused optimiser leaves
    the step out on its device, as under PyTorch's GradScaler, and the host counts such steps at the end of an epoch and
    after `SECONDS` alone: each look waits for a GPU. Any other optimiser is told by the host, at each step.

    Args:
        network: whose gradients count.
        max_norm: largest norm.
        max_bad_steps: training stops after so many steps in a row without a finite gradient.
    """

    SECONDS = 10.0

    def __init__(self, network: nn.Module, max_norm: float = 1.0, max_bad_steps: int = 10) -> None:
        self.network, self.max_norm, self.max_bad_steps, self.bad_steps = network, max_norm, max_bad_steps, 0
        self.counted, self.looked = torch.zeros((), dtype=torch.int64), time.monotonic()

    def attach(self, engine: Engine) -> None:
        engine.state.bad_steps = 0  # `TrainingCheckpoint` saves nothing while the loss is not finite
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.look)
        engine.add_event_handler(Events.COMPLETED, self.refuse_bad_end)

    def look(self, engine: Engine) -> None:
        """Counts the steps in a row without a finite gradient, and stops the run where they are too many."""
        self.bad_steps = engine.state.bad_steps = int(self.counted)
        self.looked = time.monotonic()
        if self.bad_steps >= self.max_bad_steps:
            self.stop(engine)

    def refuse_bad_end(self, engine: Engine) -> None:
        if self.bad_steps:
            self.stop(engine)

    def stop(self, engine: Engine) -> None:
        raise ValueError(
            f"the loss was not finite in {self.bad_steps} steps in a row, up to step {engine.state.iteration}; the "
            "last checkpoints are kept: continue with a smaller lr, and if that fails at once, remove the newest one"
        )

    def __call__(self, engine: Engine) -> None:
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
        bad = ~torch.isfinite(norm)
        self.counted = torch.where(bad, self.counted.to(bad.device, non_blocking=True) + 1, 0)
        optimizer: Any = getattr(engine, "optimizer", None)
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = bad.float()
            if time.monotonic() - self.looked > self.SECONDS:
                self.look(engine)
            return
        if bad:
            for parameter in parameters:
                parameter.grad = None  # the optimiser leaves a parameter without gradient as it is
        self.look(engine)


class LearningRateSchedule:
    """Linear warm-up, then constant or cosine decay; a function of the iteration alone, so it needs no state.

    Args:
        optimizer: whose learning rate it sets.
        warmup: share of the run's steps until the full rate.
        decay_to: rate at the end of training as a share of the full one; 1 is constant, as in the paper.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup: float = 0.0, decay_to: float = 1.0) -> None:
        self.optimizer, self.warmup, self.decay_to = optimizer, warmup, decay_to
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def factor(self, step: int, total: int) -> float:
        """Share of the full rate at `step` (from 1) of `total`."""
        rising = round(self.warmup * total)
        if step <= rising:
            return step / rising
        progress = (step - rising) / max(1, total - rising)
        return self.decay_to + (1 - self.decay_to) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def __call__(self, engine: Engine) -> None:
        factor = self.factor(engine.state.iteration, engine.state.max_epochs * engine.state.epoch_length)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor


class AveragedWeights(EMAHandler):
    """Ignite's average of the weights, which forgets faster while a run is young: decay = min(ema_decay, step / (step + 9)).

    Without that a run shorter than 1 / (1 - decay) steps, 10,000 for 0.9999, keeps and validates little but its
    random first weights. A function of the iteration alone, so it needs no state; Ignite's own warm-up counts its calls
    and would begin anew in a continued run. Frozen weights stay as they are, bit for bit, which Ignite's formula would move
    by rounding.

    Args:
        model: whose weights are averaged.
        decay: share of the average that stays at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, momentum=1 - decay)

    @torch.no_grad()
    def _update_ema_model(self, engine: Engine, name: str) -> None:
        momentum = max(self.momentum, 9 / (engine.state.iteration + 9))
        torch._foreach_lerp_(list(self.ema_model.parameters()), list(self.model.parameters()), momentum)
        for average, own in zip(self.ema_model.buffers(), self.model.buffers()):
            average.copy_(own)


class EpochSeed:
    """Seeds PyTorch and the random transforms at the start of each epoch, so that a continued run draws what an
    unbroken one would; each rank its own.

    Args:
        seed: of the run.
        rank: of this process.
        transform: the data's random transform, if any.
        sampler: the data's distributed sampler, if any.
    """

    def __init__(self, seed: int, rank: int = 0, transform: Any = None, sampler: Any = None) -> None:
        self.seed, self.rank, self.transform, self.sampler = seed, rank, transform, sampler

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed = (self.seed * 1_000_003 + engine.state.epoch * 1009 + self.rank) % 2**31
        torch.manual_seed(seed)
        if self.transform is not None:
            self.transform.set_random_state(seed=seed)
        if self.sampler is not None:
            self.sampler.set_epoch(engine.state.epoch)
        loader = engine.state.dataloader
        if isinstance(loader, Sized) and engine.state.epoch_length != len(loader):
            engine.set_data(loader)  # an epoch that does not end with the data would go on in the middle of it
