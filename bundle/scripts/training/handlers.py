"""Ignite handlers that MONAI and Ignite lack."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EMAHandler
from monai.engines import IterationEvents
from monai.handlers import CheckpointLoader
from torch import nn

from ..networks.base import DenoisingNetwork
from ..networks.checkpoint import load_tensors, save_weights
from .stages import latest_checkpoint

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
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
        if torch.isfinite(norm):
            self.bad_steps = 0
            return
        self.bad_steps += 1
        for parameter in parameters:
            parameter.grad = None  # the optimiser leaves a parameter without gradient as it is
        if self.bad_steps >= self.max_bad_steps:
            raise ValueError(
                f"the loss was not finite in {self.bad_steps} steps in a row, up to step {engine.state.iteration}; "
                "the last good checkpoint is kept: continue from it with a smaller lr"
            )


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
        return {"best_loss": self.best_loss, **{name: self.settings.get(name) for name in STARTED_ON}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss = state["best_loss"]

    def attach(self, engine: Engine) -> None:
        self.objects |= {"trainer": engine, "best": self}
        path = latest_checkpoint(self.ckpt_dir, self.name)
        if path is not None:
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
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.checkpoint)
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.remove_old)

    def _check(self, path: str, max_epochs: Optional[int]) -> None:
        """One line for a checkpoint that does not fit, before anything is loaded."""
        epoch = int(Path(path).stem.rpartition("=")[2])
        if max_epochs is not None and epoch > max_epochs:
            raise ValueError(f"{path} is past max_epochs {max_epochs}: raise it above {epoch} to train on")
        state = load_tensors(path)
        own = {name: value.shape for name, value in self.objects["network"].state_dict().items()}
        theirs = {name: value.shape for name, value in state.get("network", {}).items()}
        if own != theirs:
            raise ValueError(f"{path} is of another network; choose another ckpt_dir to start a new run")
        for name, weights in STARTED_ON.items():
            if state.get("best", {}).get(name) != self.settings.get(name):
                raise ValueError(f"{path} was trained on another {weights}; remove it, or bring that back")

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

    def remove_old(self, engine: Engine) -> None:
        """Removes checkpoints of earlier, broken runs, which Ignite does not count."""
        paths = sorted(
            self.ckpt_dir.glob(f"{self.name}_checkpoint_epoch=*.pt"), key=lambda path: int(path.stem.rpartition("=")[2])
        )
        for path in paths[: -self.keep]:
            path.unlink()
