"""Ignite handlers that MONAI and Ignite lack."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Optional, Sized

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EMAHandler
from monai.engines import IterationEvents
from monai.handlers import CheckpointLoader
from torch import nn

from ..networks.base import DenoisingNetwork
from ..networks.checkpoint import CHANGE_NO_WEIGHT, load_tensors, save_weights
from ..networks.high_resolution import override_settings
from .stages import checkpoints

# hashes of the frozen weights that a run stands on
STARTED_ON = {"local_sha256": "stage 1 than local.pt", "backbone_sha256": "backbone than backbone_ckpt"}


class GradientGuard:
    """Clips the gradient's norm, and leaves out a step whose gradient is not finite.

    Under DistributedDataParallel the gradients, and so the decision, are the same on every rank.

    Args:
        network: whose gradients count.
        max_norm: largest norm.
        max_bad_steps: training stops after so many steps in a row without a finite gradient.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0, max_bad_steps: int = 10) -> None:
        self.network, self.max_norm, self.max_bad_steps, self.bad_steps = network, max_norm, max_bad_steps, 0

    def attach(self, engine: Engine) -> None:
        engine.state.bad_steps = 0  # `TrainingCheckpoint` saves nothing while the loss is not finite
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.refuse_bad_end)

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
        self.bad_steps = engine.state.bad_steps = 0 if torch.isfinite(norm) else self.bad_steps + 1
        if not self.bad_steps:
            return
        for parameter in parameters:
            parameter.grad = None  # the optimiser leaves a parameter without gradient as it is
        if self.bad_steps >= self.max_bad_steps:
            self.stop(engine)


class LearningRateSchedule:
    """Linear warm-up, then constant or cosine decay; a function of the iteration alone, so it needs no state.

    Args:
        optimizer: whose learning rate it sets.
        warmup_steps: steps until the full rate.
        decay_to: rate at the end of training as a share of the full one; 1 is constant, as in the paper.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup_steps: int = 0, decay_to: float = 1.0) -> None:
        self.optimizer, self.warmup_steps, self.decay_to = optimizer, warmup_steps, decay_to
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def factor(self, step: int, total: int) -> float:
        """Share of the full rate at `step` (from 1) of `total`."""
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return self.decay_to + (1 - self.decay_to) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def __call__(self, engine: Engine) -> None:
        factor = self.factor(engine.state.iteration, engine.state.max_epochs * engine.state.epoch_length)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor


class EMAWarmUp:
    """Lets the average forget faster while a run is young: decay = min(ema_decay, step / (step + 9)).

    Without it a run shorter than 1 / (1 - decay) steps, 10,000 for the paper's 0.9999, keeps and validates little but its
    random first weights. A function of the iteration alone, so it needs no state; Ignite's own warm-up counts its calls
    and would begin anew in a continued run.

    Args:
        ema: Ignite's handler, attached under its default name.
    """

    def __init__(self, ema: EMAHandler) -> None:
        self.momentum = ema.momentum

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        engine.state.ema_momentum = max(self.momentum, 9 / (engine.state.iteration + 9))


class FrozenAverage:
    """Keeps frozen weights as they are in the average, which rounding would otherwise move a little at each step.

    Args:
        network: the trained network.
        ema_network: its average.
    """

    def __init__(self, network: nn.Module, ema_network: nn.Module) -> None:
        self.pairs = [
            (own, average)
            for own, average in zip(network.parameters(), ema_network.parameters())
            if not own.requires_grad
        ]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Engine) -> None:
        for own, average in self.pairs:
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


class TrainingCheckpoint:
    """Keeps what continues a broken run, and the averaged weights that validated best.

    Files in `ckpt_dir`: `NAME_checkpoint_epoch=N.pt` (network, average, optimiser, trainer; the last `keep`), and
    `NAME.pt` with `NAME.json`. A new run starts from the newest checkpoint it finds.

    Args:
        ckpt_dir: folder.
        name: 'local' for stage 1, 'model' for stage 2.
        network: the trained network.
        ema_network: its average, from Ignite's EMAHandler.
        optimizer: of the trainer.
        evaluator: its metric 'val_loss' says which weights are best.
        settings: what goes into the weights' JSON, see `save_weights`.
        keep: number of checkpoints to keep.
        interval: epochs between checkpoints.
        enabled: False on ranks that do not write.
    """

    def __init__(
        self,
        ckpt_dir: str,
        name: str,
        network: DenoisingNetwork,
        ema_network: DenoisingNetwork,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine,
        settings: dict,
        keep: int = 2,
        interval: int = 1,
        enabled: bool = True,
    ) -> None:
        self.ckpt_dir, self.name, self.evaluator, self.settings = Path(ckpt_dir), name, evaluator, settings
        self.objects: dict[str, Any] = {"network": network, "ema": ema_network, "optimizer": optimizer}
        self.ema_network, self.keep, self.interval, self.enabled = ema_network, keep, interval, enabled
        self.best_loss = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_loss": self.best_loss,
            **{name: self.settings.get(name) for name in STARTED_ON},
            **self.trained_as(),
        }

    def trained_as(self) -> dict[str, str]:
        """What a continued run must have in common with the one before, each as JSON."""
        network = override_settings(self.objects["network"].settings, CHANGE_NO_WEIGHT)
        parts = {"network": network, **{name: self.settings.get(name, {}) for name in ("process", "data")}}
        return {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss = state["best_loss"]

    def attach(self, engine: Engine) -> None:
        self.objects |= {"trainer": engine, "best": self}
        found = checkpoints(self.ckpt_dir, self.name)
        if found:
            path = str(found[-1])
            self._check(path, engine.state.max_epochs)
            CheckpointLoader(path, self.objects, map_location="cpu").attach(engine)
        engine.add_event_handler(Events.COMPLETED, self.validate_last)
        if self.enabled:
            saver = DiskSaver(str(self.ckpt_dir), atomic=True, create_dir=False, require_empty=False)
            self.checkpoint = Checkpoint(
                self.objects,
                saver,
                filename_pattern=f"{self.name}_checkpoint_epoch={{global_step}}.pt",
                global_step_transform=lambda trainer, _: trainer.state.epoch,
                n_saved=self.keep,
            )
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_best)
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)

    def _check(self, path: str, max_epochs: Optional[int]) -> None:
        """One line for a checkpoint that does not fit, before anything is loaded."""
        epoch = int(Path(path).stem.rpartition("=")[2])
        if max_epochs is not None and epoch > max_epochs:
            raise ValueError(f"{path} is past max_epochs {max_epochs}: raise it above {epoch} to train on")
        state = load_tensors(path)
        missing = [name for name in self.objects if name not in state]
        if missing:
            raise ValueError(f"{path} is no checkpoint of this bundle: it has no {missing[0]}; remove it")
        own = {name: value.shape for name, value in self.objects["network"].state_dict().items()}
        theirs = {name: value.shape for name, value in state.get("network", {}).items()}
        if own != theirs:
            raise ValueError(f"{path} is of another network; choose another ckpt_dir to start a new run")
        for name, weights in STARTED_ON.items():
            if state.get("best", {}).get(name) != self.settings.get(name):
                raise ValueError(f"{path} was trained on another {weights}; remove it, or bring that back")
        for part, now in self.trained_as().items():
            before = json.loads(state.get("best", {}).get(part, now))
            for name, value in json.loads(now).items():
                if before.get(name, value) != value:
                    raise ValueError(
                        f"{path} was trained with {name} {before[name]}, this run has {value}; choose another ckpt_dir "
                        "to start a new run"
                    )

    def save(self, engine: Engine) -> None:
        """Saves what continues the run, unless its loss is not finite: good checkpoints are not to be replaced."""
        if not getattr(engine.state, "bad_steps", 0):
            self.checkpoint(engine)
            self.remove_old()

    def validate_last(self, engine: Engine) -> None:
        """Validates the end of a run whose length is no multiple of the validation's interval."""
        if self.evaluator.state.epoch != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)
            if self.enabled:
                self.save_best(engine)

    def save_best(self, engine: Engine) -> None:
        if self.evaluator.state.epoch != engine.state.epoch:
            return  # not validated in this epoch
        loss = float(self.evaluator.state.metrics["val_loss"])
        if loss < self.best_loss:
            self.best_loss = loss
            extra = {"epoch": engine.state.epoch, "step": engine.state.iteration, "val_loss": loss}
            save_weights(self.ema_network, self.ckpt_dir / f"{self.name}.pt", {**self.settings, "training": extra})

    def remove_old(self) -> None:
        """Removes checkpoints of earlier, broken runs, which Ignite does not count."""
        for path in checkpoints(self.ckpt_dir, self.name)[: -self.keep]:
            path.unlink()
