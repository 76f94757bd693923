"""What continues a broken training run, and the weights that validated best."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Optional, Union

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

from ..networks.base import DenoisingNetwork
from ..networks.checkpoint import CHANGE_NO_WEIGHT, load_tensors, save_weights
from ..networks.high_resolution import override_settings
from .stages import volumes_of

# hashes of the weights that a run stands on or started from
STARTED_ON = {
    "local_sha256": "stage 1 than local.pt",
    "residual_sha256": "transformer than that of residual_ckpt",
    "backbone_sha256": "backbone than backbone_ckpt",
    "finetune_sha256": "start than finetune_from",
}


def checkpoints(ckpt_dir: Union[str, Path], prefix: str) -> list[Path]:
    """The files `prefix_checkpoint_epoch=N.pt` of a folder, the oldest first."""
    found = {path.stem.rpartition("=")[2]: path for path in Path(ckpt_dir).glob(f"{prefix}_checkpoint_epoch=*.pt")}
    return [found[epoch] for epoch in sorted((epoch for epoch in found if epoch.isdecimal()), key=int)]


class TrainingCheckpoint:
    """Keeps what continues a broken run, and the averaged weights that validated best.

    Files in `ckpt_dir`: `NAME_checkpoint_epoch=N.pt` (network, average, optimiser, trainer; the last `keep`), and
    `NAME.pt` with `NAME.json`. A new run starts from the newest checkpoint it finds.

    A continued run has the settings that it is given: its optimiser's, and its own number of steps an epoch, which the
    number of volumes and the batch say. It is at the end of the epoch of the checkpoint, so that a learning rate that
    follows the steps is at the same share of the run. What makes it another run is refused: the network, the process,
    the field of view, the weights it started from, the volumes that say which weights are best.

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
        validated_on: what 'val_loss' depends on, by setting: texts and numbers.
        computed_in: 'precision' and 'device', see `scripts.inferers.computed_in`; kept for the weights' JSON.
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
        validated_on: Optional[dict] = None,
        computed_in: Optional[dict] = None,
    ) -> None:
        self.ckpt_dir, self.name, self.evaluator, self.settings = Path(ckpt_dir), name, evaluator, settings
        self.objects: dict[str, Any] = {"network": network, "ema": ema_network, "optimizer": optimizer}
        self.ema_network, self.keep, self.interval, self.enabled = ema_network, keep, interval, enabled
        self.validated_on = validated_on or {}
        self.computed_in = [" on ".join(computed_in.values())] if computed_in else []  # of all parts of the run
        self.best_loss = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_loss": self.best_loss,
            "computed_in": self.computed_in,
            **{name: self.settings.get(name) for name in STARTED_ON},
            **self.trained_as(),
        }

    def trained_as(self) -> dict[str, str]:
        """What a continued run must have in common with the one before, each as JSON."""
        parts = {
            "network": override_settings(self.objects["network"].settings, CHANGE_NO_WEIGHT),
            "process": self.settings.get("process", {}),
            "data": volumes_of(self.settings["data"]) if "data" in self.settings else {},
            "validated_on": self.validated_on,
        }
        return {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss = state["best_loss"]
        before = state.get("computed_in", [])
        self.computed_in = [*(one for one in before if one not in self.computed_in), *self.computed_in]

    def attach(self, engine: Engine) -> None:
        self.objects |= {"trainer": engine, "best": self}
        found = checkpoints(self.ckpt_dir, self.name)
        if found:
            state = self._check(str(found[-1]), engine.state.max_epochs)
            # not now: Ignite would take a finished run for one to start anew
            engine.add_event_handler(Events.STARTED, lambda: self.resume(engine, found[-1], state))
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

    def resume(self, engine: Engine, path: Path, state: dict[str, Any]) -> None:
        """Puts a checkpoint into all objects, with this run's settings, and empties it."""
        steps, max_epochs = engine.state.epoch_length, engine.state.max_epochs
        groups = self.objects["optimizer"].param_groups
        settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        Checkpoint.load_objects(self.objects, state)
        for group, own in zip(self.objects["optimizer"].param_groups, settings):
            group.update(own)
        epoch, steps_before = engine.state.epoch, engine.state.epoch_length
        engine.state.epoch_length, engine.state.max_epochs, engine.state.iteration = steps, max_epochs, epoch * steps
        if self.enabled and epoch < max_epochs:
            facts = [f"continues {path} in epoch {epoch + 1} of {max_epochs}"]
            if steps != steps_before:
                facts.append(f"{steps} steps an epoch, before {steps_before}")
            if state["best"].get("computed_in", self.computed_in)[-1:] != self.computed_in[-1:]:
                facts.append(f"in {self.computed_in[-1]}, before {state['best']['computed_in'][-1]}")
            print("; ".join(facts))
        state.clear()

    def _check(self, path: str, max_epochs: Optional[int]) -> dict[str, Any]:
        """The content of a checkpoint; one line when it does not fit, before anything is loaded."""
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
        best = state["best"]
        for name, weights in STARTED_ON.items():
            if best.get(name, self.settings.get(name)) != self.settings.get(name):
                raise ValueError(f"{path} was trained on another {weights}; remove it, or bring that back")
        if len(_trained(self.objects["optimizer"].state_dict())) != len(_trained(state["optimizer"])):
            raise ValueError(f"{path} is of a run that trains other parts of the network; choose another ckpt_dir")
        for part, now in self.trained_as().items():
            before = json.loads(best.get(part, now))
            before = volumes_of(before) if part == "data" and before else before  # older ones have sizes as typed
            for name, value in json.loads(now).items():
                if before.get(name, value) != value:
                    raise ValueError(
                        f"{path} was trained with {name} {before[name]}, this run has {value}; choose another ckpt_dir "
                        "to start a new run"
                    )
        return state

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
            extra: dict[str, Any] = {"epoch": engine.state.epoch, "step": engine.state.iteration, "val_loss": loss}
            extra["computed_in"] = self.computed_in
            settings = {name: value for name, value in self.settings.items() if value is not None}
            save_weights(self.ema_network, self.ckpt_dir / f"{self.name}.pt", {**settings, "training": extra})

    def remove_old(self) -> None:
        """Removes checkpoints of earlier, broken runs, which Ignite does not count."""
        for path in checkpoints(self.ckpt_dir, self.name)[: -self.keep]:
            path.unlink()


def _trained(optimizer: dict[str, Any]) -> list[int]:
    """Numbers of the parameters in an optimiser's state."""
    return [number for group in optimizer["param_groups"] for number in group["params"]]
